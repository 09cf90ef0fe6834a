"""The real command, with Prefect, under faults of its server, its results and its database."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.drills.conftest import Saw
from tests.drills.forks import MODEL, ROOT, Ended, Forks, differences
from tests.drills.network import Relay
from tests.lm.openai_server import AWAY, BUSY, DROP, HANG, WRONG_KEY, Fault, OpenAIServer, closed_address

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
REAL_MOMENTS = int(os.environ.get("DRILL_REAL_MOMENTS", "10"))
PREFECT = str(Path(sys.executable).with_name("prefect"))
KEY = "sk-planted-4711-in-every-place"


@dataclass
class Command:
    """A run of the command, under way or ended."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def wait(self, seconds: float = 600) -> int:
        return self.process.wait(seconds)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[str]:
        """What it said in the end, without warnings."""
        return [line for line in self.said().splitlines() if line.startswith(("Error", "Traceback"))]


@dataclass
class Commands:
    """The command for one project in one home."""

    project: Path
    home: Path
    environment: dict[str, str]

    def start(self, **fault: Any) -> Command:
        number = len(list(self.home.parent.glob("*.log")))
        log = self.home.parent / f"{number}.log"
        arguments = ["--project", str(self.project), "--optimizer", "bootstrap", "--budget", "120"]
        with log.open("wb") as out:
            command = [sys.executable, "-m", "tests.drills.flow", json.dumps(fault), *arguments]
            process = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=out, stderr=out)
        return Command(process, log, time.monotonic())

    def run(self, **fault: Any) -> float:
        """To its end, which is good; the seconds."""
        command = self.start(**fault)
        code = command.wait()
        assert code == 0, command.said()[-3000:]
        return time.monotonic() - command.started

    def until(self, **fault: Any) -> tuple[Command, Callable[[], None]]:
        """To where the fault waits; and what lets it go on."""
        folder = self.home.parent
        for name in ("reached", "go"):
            (folder / name).unlink(missing_ok=True)
        command = self.start(**fault, wait=str(folder))
        while not (folder / "reached").exists():
            assert command.process.poll() is None, command.said()[-3000:]
            time.sleep(0.05)
        return command, (folder / "go").touch

    def states(self) -> list[str]:
        """Of the flow runs in the home's own Prefect database, oldest first."""
        return self._ask("select state_type from flow_run order by created")

    def attempts(self) -> int:
        """The most that a task was tried."""
        return max(self._ask("select run_count from task_run"))

    def _ask(self, question: str) -> list[Any]:
        with closing(sqlite3.connect(self.home / "prefect" / "prefect.db")) as database:
            return [row[0] for row in database.execute(question)]


@pytest.fixture
def commands(project: Path, new_home, tmp_path: Path) -> Iterator[Commands]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DSPY_TOOLKIT"))}
    home = new_home(tmp_path)
    own = {"HOME": str(home), "LM__MODEL": MODEL, "LM__LEASE": "share", "OBSERVE__PROGRESS": "false"}
    before = set(psutil.Process().children(recursive=True))
    yield Commands(project, home, clean | {f"DSPY_TOOLKIT_{name}": value for name, value in own.items()})
    for process in set(psutil.Process().children(recursive=True)) - before:
        if "prefect" in " ".join(process.cmdline()) or "tests.drills.flow" in " ".join(process.cmdline()):
            process.kill()


def check_end(forks: Forks, commands: Commands, undisturbed: Ended) -> None:
    found = forks.run(commands.project, commands.home, look=True).end
    assert found is not None and undisturbed.end is not None
    assert not differences(found, undisturbed.end)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until something answers well there, two minutes at most."""
    for _ in range(240):
        assert process.poll() is None, "the server ended"
        with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            assert answer.status == 200
            return
        time.sleep(0.5)
    raise AssertionError(f"nothing answers at {address}")


@contextmanager
def server(commands: Commands) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a Prefect server that `commands` use, again and again on the same port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands.environment |= {
        "PREFECT_HOME": str(commands.home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # As the README has it: a server that was restarted knows when the accelerator's place is free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (commands.home.parent / "server.txt").open("ab") as log:
            command = [PREFECT, "--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", port]
            # A group of its own: the server has a child.
            process = subprocess.Popen(
                command, env=commands.environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        wait_for(f"http://127.0.0.1:{port}/api/health", process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.mark.drill(4, "SIGKILL of a run with its temporary server")
def test_a_killed_run_leaves_no_server(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    command, _ = commands.until(fake=True, ask=40)
    children = psutil.Process(command.process.pid).children(recursive=True)
    assert children, "no temporary server"
    started = time.monotonic()
    command.process.kill()
    command.wait()
    _, alive = psutil.wait_procs(children, 60)
    assert not alive, alive
    gone = time.monotonic() - started
    again = commands.run(fake=True)
    assert commands.states() == ["CRASHED", "COMPLETED"]
    check_end(forks, commands, undisturbed)
    saw(f"the server was gone after {gone:.1f} s; the next run called the flow crashed, and ended", again)


@pytest.mark.drill(5, "the Prefect server dies in the middle of a search")
def test_the_server_dies(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    with server(commands) as start:
        api = start()
        command, go_on = commands.until(fake=True, ask=40)
        kill(api)
        go_on()
        started = time.monotonic()
        # Prefect's client tries each request for about a minute, and a run that ends makes several.
        assert command.wait(480) == 1
        seconds = time.monotonic() - started
        # Prefect's own lines on stderr do not all end.
        assert command.said().count("Error: The Prefect server at") == 1, command.said()[-3000:]
        assert "Traceback" not in command.said()
        start()
        again = commands.run(fake=True)
    check_end(forks, commands, undisturbed)
    saw(f"one line after {seconds:.0f} s; with a server again the same command went on", again)


@pytest.mark.drill(6, "the Prefect server restarts within 30 s")
def test_the_server_restarts(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    with server(commands) as start:
        api = start()
        command, go_on = commands.until(fake=True, ask=40)
        kill(api)
        go_on()
        started = time.monotonic()
        time.sleep(10)
        start()
        assert command.wait() == 0, command.said()[-3000:]
        seconds = time.monotonic() - started
    check_end(forks, commands, undisturbed)
    saw("the run waited, and ended as if undisturbed", seconds)


@pytest.mark.drill(29, "the network between a run and the Prefect server is cut for 15 s")
def test_the_network_is_cut(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    with server(commands) as start:
        start()
        api = commands.environment["PREFECT_API_URL"]
        with Relay(int(api.rsplit(":", 1)[1].partition("/")[0])) as relay:
            commands.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{relay.port}/api"
            command, go_on = commands.until(fake=True, ask=40)
            relay.cut()
            go_on()
            started = time.monotonic()
            time.sleep(15)
            relay.mend()
            assert command.wait() == 0, command.said()[-3000:]
            seconds = time.monotonic() - started
    check_end(forks, commands, undisturbed)
    saw("the run waited, and ended as if undisturbed", seconds)


@pytest.mark.drill(10, "Prefect's kept results are truncated")
def test_truncated_results(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    # Killed before anything is promoted, so that the next run asks all the same questions.
    command, _ = commands.until(fake=True, at="before save_version")
    command.process.kill()
    command.wait()
    # Those that have a step's name are kept for later runs; the others are of this run alone.
    results = [path for path in (commands.home / "prefect" / "storage").rglob("*-*") if path.is_file()]
    assert {path.name.partition("-")[0] for path in results} >= {"prepare", "probe", "compile", "compare"}
    for path in results:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = commands.run(fake=True)
    whole = [json.loads(path.read_bytes()) for path in results]
    assert len(whole) == len(results), "made again"
    check_end(forks, commands, undisturbed)
    saw(f"{len(results)} results were computed again, from the cache of replies", again)


@pytest.mark.drill(16, "the database of runs is locked for 30 s")
def test_a_locked_database(commands: Commands, forks: Forks, undisturbed: Ended, saw: Saw) -> None:
    command, go_on = commands.until(fake=True, at="before save_version")
    with closing(sqlite3.connect(commands.home / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        go_on()
        time.sleep(30)
        database.execute("ROLLBACK")
    started = time.monotonic()
    assert command.wait() == 0, command.said()[-3000:]
    seconds = time.monotonic() - started
    commands.run(fake=True)  # closes the runs of attempts that could not even be marked as failed
    check_end(forks, commands, undisturbed)
    saw("tried again until it was free; promoted and recorded", seconds)


def failing(what: str) -> Fault | None:
    return {"429": BUSY, "503": AWAY, "dropped": DROP, "hanging": HANG}.get(what)


@pytest.mark.drill(20, "a remote model answers 429 or 503, refuses, drops or hangs")
def test_a_remote_model_that_fails(project: Path, commands: Commands, new_home, tmp_path: Path, saw: Saw) -> None:
    from tests.flows.conftest import answer

    slowest = 0.0
    whats = ("429", "503", "refused", "dropped", "hanging")
    for what in whats:
        with OpenAIServer(lambda body: _as_fake(body, answer)) as remote:
            remote.always = failing(what)
            own = {
                "HOME": str(new_home(tmp_path / what)),
                "LM__MODEL": "openai/NAME",
                "LM__API_BASE": closed_address() if what == "refused" else remote.address,
                "LM__API_KEY": KEY,
                "LM__TIMEOUT": "5",
            }
            each = Commands(
                project,
                tmp_path / what / "home",
                commands.environment | {f"DSPY_TOOLKIT_{name}": value for name, value in own.items()},
            )
            command = each.start(hurried=True)
            assert command.wait() == 1, (what, command.said()[-3000:])
            assert len(command.lines()) == 1 and command.lines()[0].startswith("Error"), (what, command.said()[-3000:])
            assert each.attempts() == 4, what
            remote.always = None
            each.environment["DSPY_TOOLKIT_LM__API_BASE"] = remote.address
            slowest = max(slowest, each.run(hurried=True))
    saw(f"{len(whats)} times three retries of the step, then one line; the same command ended well afterwards", slowest)


def _as_fake(body: dict[str, Any], answer: Callable[[Any], Any]) -> Any:
    """What the fake model of the flows' tests would say to this request."""
    from types import SimpleNamespace

    messages = [SimpleNamespace(content=str(message["content"])) for message in body["messages"]]
    return answer(SimpleNamespace(messages=messages))


@pytest.mark.drill(25, "a key is planted, in a whole run and in every error")
def test_a_planted_key(commands: Commands, saw: Saw) -> None:
    from tests.flows.conftest import answer

    started = time.monotonic()
    echo = Fault(401, f"Incorrect API key provided: {KEY}", "invalid_api_key")
    with OpenAIServer(lambda body: _as_fake(body, answer)) as remote:
        commands.environment |= {
            "DSPY_TOOLKIT_LM__MODEL": "openai/NAME",
            "DSPY_TOOLKIT_LM__API_BASE": remote.address,
            "DSPY_TOOLKIT_LM__API_KEY": KEY,
            "DSPY_TOOLKIT_REFLECTION__API_KEY": KEY,
            "OPENAI_API_KEY": KEY,
            "DSPY_TOOLKIT_OBSERVE__LOG_LEVEL": "DEBUG",
        }
        for fault in (echo, WRONG_KEY, AWAY, DROP):
            remote.always = fault
            assert commands.start(hurried=True).wait() == 1
        remote.always = None
        commands.run(hurried=True)
        assert any(KEY in str(received.authorization) for received in remote.received), "it reached its own server"
    told = [path for path in commands.home.parent.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not told, told
    saw("no hit in the home, the logs or the terminal", time.monotonic() - started)


@pytest.mark.drill(27, "SIGKILL at a random moment of the real command, the real model")
def test_killed_at_random_moments_on_the_real_model(
    project: Path, commands: Commands, forks: Forks, model_home: Path, tmp_path: Path, saw: Saw
) -> None:
    def place(name: str) -> Commands:
        home = tmp_path / name / "home"
        shutil.copytree(model_home / "models", home / "models")
        environment = commands.environment | {
            "DSPY_TOOLKIT_HOME": str(home),
            "DSPY_TOOLKIT_LM__MODEL": "mlx/smollm2-135m",
        }
        return Commands(project, home, environment)

    whole = place("undisturbed")
    seconds = whole.run()
    expected = forks.run(project, whole.home, look=True).end
    assert expected is not None
    chance, slowest = random.Random(10), 0.0
    for number in range(REAL_MOMENTS):
        each = place(str(number))
        command = each.start()
        time.sleep(chance.random() * seconds)
        children = (
            psutil.Process(command.process.pid).children(recursive=True) if command.process.poll() is None else []
        )
        command.process.kill()
        command.wait()
        _, alive = psutil.wait_procs(children, 60)
        assert not alive, alive
        slowest = max(slowest, each.run())
        assert not differences(forks.run(project, each.home, look=True).end, expected), number
        shutil.rmtree(each.home.parent)
    saw(f"{REAL_MOMENTS} kills: the same command came to the same end each time", slowest)
