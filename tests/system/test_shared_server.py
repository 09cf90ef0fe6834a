"""Two homes, one MLflow server on PostgreSQL that keeps the files itself; every step a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.postgres import PASSWORD, free_port, postgres, wait_for

ROOT = Path(__file__).parents[2]
DRIVER = "psycopg[binary]"
COMMAND = "from dspy_toolkit.cli import main; main()"
COMMANDS = """
import json, sys
from dspy_toolkit.cli import main

for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise
    print(end="\\0", flush=True)
"""
OPTIMIZE = """
import sys
from pathlib import Path
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.registry import load_version, save_version
from dspy_toolkit.registry.manifest import KeptVerdict
from dspy_toolkit.scaffold import new_project
from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.runs import record_run
from tests.scaffold.test_whole_way import Fresh

settings = load_settings()
bench = Fresh(settings, new_project("triage", "classify", Path(sys.argv[1])))
release_baseline(bench.context(), bench.resolve())
run, _ = bench.whole(optimizer="labelled", budget="120")
print(run.decision.outcome, run.decision.version)
# Two more, each of which has beaten version 2.
state, manifest = load_version(settings, "triage@2")
for words in ("Look closely.", "Look again."):
    state["signature"]["instructions"] = words
    verdict = KeptVerdict(outcome="promoted", reason=words, champion=2, champion_sha256=manifest.program_sha256)
    run_id = record_run(settings, "triage", words, {}, {})
    print(save_version(settings, "triage", state, manifest.model_copy(update={"verdict": verdict}), run_id))
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


class Server(NamedTuple):
    """MLflow's server."""

    address: str
    artifacts: Path
    process: subprocess.Popen[bytes]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    driver = tmp_path / "driver"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target", str(driver), DRIVER]
    got = subprocess.run(pip, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"Make `pip install {DRIVER}` work. {got.stderr.strip()[-200:]}")
    port, log, artifacts = free_port(), tmp_path / "mlflow.log", tmp_path / "the server's files"
    with postgres() as database, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
             str(artifacts), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=output, stderr=output, cwd=tmp_path, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(driver), "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
        try:
            wait_for(port, process, log, 300)
            yield Server(f"http://127.0.0.1:{port}", artifacts, process)
        finally:
            with suppress(ProcessLookupError):  # the test may have ended it
                os.killpg(process.pid, 9)
            process.wait()


class Home(NamedTuple):
    """A home, and how its processes are started."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        """A command of the toolkit: exit code, stdout, stderr."""
        process = self.start("-c", COMMAND, *words)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    def run_all(self, *commands: Sequence[str]) -> list[str]:
        """What commands print that end well, one after the other in one process."""
        process = self.start("-c", COMMANDS, json.dumps(commands))
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        return out.split("\0")[:-1]


def home(folder: Path, server: Server) -> Home:
    folder.mkdir()
    mine = {
        key: value for key, value in os.environ.items() if not key.startswith(("DSPY_TOOLKIT", "MLFLOW", "PREFECT"))
    }
    return Home(
        folder,
        mine | {"PYTHONPATH": str(ROOT), "DSPY_TOOLKIT_HOME": "home", "DSPY_TOOLKIT_LM__LEASE": "share",
                "DSPY_TOOLKIT_REGISTRY__TRACKING_URI": server.address, "DSPY_CACHEDIR": str(folder / "dspy")},
    )  # fmt: skip


def history(home: Home) -> list[int]:
    """The champion and those before it, as this home sees it."""
    return [version["version"] for version in json.loads(home.run_all(["programs", "history", "triage", "--json"])[0])]


def test_what_one_home_promotes_the_other_one_has(server: Server, tmp_path: Path) -> None:
    here, there = home(tmp_path / "here", server), home(tmp_path / "there", server)
    process = here.start("-c", OPTIMIZE, str(tmp_path))
    out, err = process.communicate(timeout=500)
    assert out.split() == ["promoted", "2", "3", "4"], err
    project = str(tmp_path / "triage" / "project.toml")

    # The other home sees it, with its reasons, its messages and its files.
    seen, shown, *_ = there.run_all(
        ["programs", "history", "triage", "--json"],
        ["programs", "show", project],
        *(["programs", "export", f"triage@{number}", "--to", f"{number}.bundle"] for number in (3, 4)),
    )
    assert [version["version"] for version in json.loads(seen)] == [2, 1]
    assert "technical" in shown

    # Each side promotes another version at once: one champion, a history that can be walked, and the loser is told.
    promoting = {
        number: each.start("-c", COMMAND, "programs", "promote", f"triage@{number}")
        for number, each in ((3, here), (4, there))
    }
    said = {number: process.communicate(timeout=400)[1] for number, process in promoting.items()}
    ((won, lost),) = [(a, b) for a, b in ((3, 4), (4, 3)) if promoting[a].returncode == 0 != promoting[b].returncode]
    assert f"the champion is triage@{won}" in said[lost] or f"the champion is version {won}" in said[lost], said
    assert history(here) == [won, 2, 1]

    # A dead version is deleted here, and comes back there, as another one, in the bundle that it was exported to.
    here.run_all(["programs", "delete", f"triage@{lost}"])
    migrated, differing, imported, listed, exported, rolled_back, again, seen = there.run_all(
        ["programs", "migrate", "triage", "--project", project, "--json"],
        ["programs", "diff", "triage@2", f"triage@{won}", "--json"],
        ["programs", "import", f"{lost}.bundle", "--project", project, "--json"],
        ["programs", "list", "triage", "--json"],
        ["programs", "export", f"triage@{won}", "--as", "mlflow", "--project", project],
        ["programs", "rollback", "triage", "--json"],
        ["programs", "promote", "triage@5", "--json"],
        ["programs", "history", "triage", "--json"],
    )
    assert {fit["version"]: fit["state"] for fit in json.loads(migrated)} == dict.fromkeys((1, 2, won), "fits")
    assert "Look" in differing
    assert json.loads(imported)["version"] == 5
    assert [version["version"] for version in json.loads(listed)] == [1, 2, won, 5]
    assert exported == "prompts:/triage.prompt/1\n"
    assert json.loads(rolled_back)["version"] == 2
    # Its verdict came with it, and holds for the champion that is live again.
    assert json.loads(again)["replaced"] == 2
    assert [version["version"] for version in json.loads(seen)] == [5, 2, 1]
    assert history(here) == [5, 2, 1]

    # The files are the server's, and neither home has a database or files of runs.
    assert [path.name for path in server.artifacts.rglob("manifest.json")]
    for each in (here, there):
        assert not {"mlflow.db", "artifacts"} & {path.name for path in (each.folder / "home").glob("*")}

    # Without the server a command is one line that says so, soon, and nobody sees the database's password.
    os.killpg(server.process.pid, 15)
    server.process.wait(60)
    code, out, err = there.run("programs", "list")
    assert (code, out) == (1, "") and err.startswith("Error: ") and err.count("\n") == 1
    assert server.address in err
    assert PASSWORD not in err
