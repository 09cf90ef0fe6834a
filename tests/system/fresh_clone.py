"""A fresh clone with an empty HOME, a terminal in it, and a language model on loopback that knows the answers.

The clone is of what is committed. It is given the packages of the environment that runs the tests, as links.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.documentation.shell import ROOT

PORTS = {
    4200: "PREFECT_SERVER_API_PORT",
    5000: "MLFLOW_PORT",
    8000: "DSPY_TOOLKIT_SERVING__PORT",
    8090: "PAGES_PORT",
}
"""Those that the pages name, and what sets another. Where one is taken on this machine, or another test runs beside, a free one
stands in its place, and nothing else of a block is changed."""
STRIPPED = ("DSPY", "PREFECT", "MLFLOW", "LITELLM", "HF_", "PYTEST", "PYTHON", "OPENAI", "VIRTUAL_ENV")

SUBJECTS = {"description": "What is a", "entity": "Which country has", "human": "Who wrote"}
LABELS = (list(SUBJECTS), ["billing", "technical", "account"], ["lora", "clip", "federated"])
"""Of the projects that it knows; where it is wrong it says another one of the same project."""
THINGS = ["sonnet", "lighthouse", "glacier", "violin", "harvest", "comet", "bridge", "orchard"]
THINGS += ["novel", "compass", "meadow", "engine", "harbour", "mountain", "parliament", "vaccine"]


def questions() -> dict[str, str]:
    """The rows that a reader of README.md brings: question → type of its answer."""
    return {
        f"{words} {thing}{'' if n == 0 else f', volume {n}'}?": label
        for label, words in SUBJECTS.items()
        for n, thing in enumerate(THINGS)
    }


class Model:
    """It knows the answers, and gives them when it is shown how; else it is right for one row of three."""

    def __init__(self) -> None:
        rows = (ROOT / "data/router/requests.jsonl").read_text(encoding="utf-8").splitlines()
        self.answers = questions() | {row["request"]: row["project"] for row in map(json.loads, rows)}
        with (ROOT / "dspy_toolkit/scaffold/templates/classify/rows.csv").open(newline="", encoding="utf-8") as file:
            self.answers |= {row["message"]: row["topic"] for row in csv.DictReader(file)}

    def __call__(self, body: dict[str, Any]) -> dict[str, str] | str:
        asked = str(body["messages"][-1]["content"])
        shown = any(turn["role"] == "assistant" for turn in body["messages"])
        inputs, said, outputs = asked.rpartition("Respond with")
        if not said:
            inputs, outputs = asked, ""
        names = re.findall(r"\[\[ ## (\w+) ## ]]|`(\w+)`", outputs)
        # Too short for an instruction, so that no time is spent on rewriting them.
        answer = "Look again."
        listed = r"one of: ([^;\n]+);|Reply with one of: ([^,.\\]+)|\\?\"enum\\?\": ?\[\s*\\?\"([^\"\\]+)"
        if choices := re.search(listed, json.dumps(body)):
            answer = next(filter(None, choices.groups()))
        marked = r"^\[\[ ## \w+ ## ]]\n(.*?)\n*(?=^\[\[|\Z)|^<\w+>\n(.*?)\n</"
        for value in map("".join, re.findall(marked, inputs, re.M | re.S)) if outputs else [asked]:
            if right := self.answers.get(value.strip()):
                labels = next((group for group in LABELS if right in group), LABELS[-1])
                answer = right if shown else labels[zlib.crc32(value.encode()) % 3]
        if tags := re.findall(r"`<(\w+)>`", outputs):
            return "\n\n".join(f"<{name}>\n{answer}\n</{name}>" for name in tags)
        if not outputs:  # the plain format
            return answer
        return {name or other: answer for name, other in names if "completed" not in (name, other)}


def make_clone(here: Path) -> None:
    """Clone the repository, and let the clone find itself set up and the reader's table in its place."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(here)], check=True)
    (here / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".ready":
            (here / ".venv" / entry.name).symlink_to(entry)
    (here / ".venv/.ready").touch()
    rows = here / "path/to/questions.csv"
    rows.parent.mkdir(parents=True)
    with rows.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *questions().items()])


def environment(clone: Path, home: Path, address: str) -> dict[str, str]:
    """Of a user with an empty HOME, `home`, and a language model at `address`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(STRIPPED)}
    home.mkdir()
    return kept | {
        "HOME": str(home),
        "PYTHONPATH": str(clone),  # the packages are those of another folder
        "DSPY_TOOLKIT_LM__MODEL": "openai/fake",
        "DSPY_TOOLKIT_LM__API_BASE": address,
        "DSPY_TOOLKIT_LM__API_KEY": "none",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@dataclass(frozen=True)
class Terminal:
    """A shell that runs a script, what it prints, and the ports that took the place of those in the script."""

    shell: subprocess.Popen[bytes]
    log: Path
    ports: dict[int, int]

    @property
    def printed(self) -> str:
        """Until now."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float) -> str:
        """What was printed, when the script has ended well."""
        assert self.shell.wait(seconds) == 0, self.printed
        return self.printed


@contextmanager
def terminal(script: str, clone: Path, environment: dict[str, str], log: Path) -> Iterator[Terminal]:
    """Run a script in the clone until the block ends; then nothing that it started is left."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ  # else another terminal may take them between this look and the use
    ports = {port: port if alone and _is_free(port) else _free_port() for port in PORTS}
    for port, other in ports.items():
        if other != port:
            script = script.replace(str(port), str(other))
            environment = environment | {PORTS[port]: str(other)}
    with log.open("w") as out:
        shell = subprocess.Popen(
            # Monitor mode is what a terminal has: a job in the background can be interrupted.
            ["bash", "-e", "-o", "pipefail", "-c", f"set -m\n{script}"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Terminal(shell, log, ports)
        finally:
            _end_session(shell)


def _end_session(shell: subprocess.Popen[bytes]) -> None:
    """End what the shell has started: the processes of its session, by their ids."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        members = [each for each in psutil.pids() if _session_of(each) == shell.pid]
        for each in members:
            with suppress(ProcessLookupError):
                os.kill(each, number)
        psutil.wait_procs([psutil.Process(each) for each in members if psutil.pid_exists(each)], timeout=5)
    shell.wait(10)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
