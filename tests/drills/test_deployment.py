"""Runs that a deployment's worker starts, while the services below them are killed, cut off or without a disk.

After each fault: the champion and its record agree, no run is left open, every object of the store is whole, all that was
reported done is there, and the next run of the schedule ends well, without a command by hand.

Not covered: the same for a run that a command starts (test_flow.py), and systemd itself (see `house`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployments.places import POOL
from dspy_toolkit.feedback import read_feedback
from tests.drills.conftest import Saw
from tests.drills.forks import Ended, Forks
from tests.drills.house import LASTING, OVER, RESTART_SECONDS, Held, House, house, now, ready
from tests.drills.network import Relay
from tests.drills.optimization import NO_SPACE
from tests.system.packages import kept_packages
from tests.system.postgres import postgres

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

HOME = (
    "lost",
    "lostpromoted",
    "lostrecord",
    "outlives",
    "api",
    "apirecord",
    "served",
    "cut",
    "fulla",
    "fullb",
    "fullc",
)
ON_POSTGRESQL = ("tracked", "trackedrecord", "based", "basedrecord")
UNDER_A_CLOCK = ("back", "ahead")
CUT_SECONDS = 20.0
ALERT_SECONDS = 30.0
"""Within which an alert is to arrive after its cause."""
HOUR = 3600
DATABASES = """
import sys, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as database:
    for name in ("prefect", "mlflow"):
        database.execute(f"CREATE DATABASE {name}")
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[House]:
    """As `make up` has it: both databases are files."""
    with house(tmp_path_factory.mktemp("house") / "all", HOME, empty_mlflow) as made:
        yield made


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[tuple[House, int]]:
    """Both databases in one PostgreSQL, and its port."""
    packages = kept_packages("psycopg", ["psycopg[binary]"])
    with postgres() as database:
        environment = os.environ | {"PYTHONPATH": packages}
        subprocess.run([sys.executable, "-c", DATABASES, database], env=environment, check=True)
        base = database.rpartition("/")[0]
        folder = tmp_path_factory.mktemp("house") / "on PostgreSQL"
        with house(folder, ON_POSTGRESQL, empty_mlflow, base, PYTHONPATH=packages) as made:
            yield made, int(base.rpartition(":")[2])


@pytest.fixture(scope="module")
def undisturbed_of(
    forks: Forks, new_home: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[House, str], Ended]:
    """A whole run of a project of a house that nothing disturbs, in a home of its own."""

    def run(house: House, project: str) -> Ended:
        home = new_home(tmp_path_factory.mktemp("undisturbed"))
        ended = forks.run(Path(house.settings.location_of(project) or ""), home, named=project)
        assert ended.code == 0 and ended.end is not None and ended.end["outcome"] == "promoted", ended
        return ended

    return run


def check(house: House, before: set[str], ended: Ended, project: str) -> None:
    """The end of a project is that of a run that nothing disturbed, and what was done before is still there."""
    assert ended.end is not None
    found = house.end(project)
    wrong = {name: (found.get(name), ended.end[name]) for name in LASTING if found.get(name) != ended.end[name]}
    assert not wrong, f"{project}: {wrong}"
    assert not (lost := before - house.done()), lost


@pytest.mark.drill(30, "a deployment: SIGKILL of the worker while its runs are in a search, a promotion and a record")
def test_the_worker_is_killed(here: House, undisturbed_of: Callable[[House, str], Ended], saw: Saw) -> None:
    held = here.hold(lostpromoted="after promote", lostrecord="before record")
    held += here.hold(lost="before compile")
    for each in held:
        here.schedule(each.project)
    before, since = here.done(), now()
    killed = here.units["worker"].kill()
    gone = max(here.ended(each.run, "CRASHED") for each in held) - killed
    told = max(here.alert("crashed optimize-program", each.run, since) for each in held)
    assert told < ALERT_SECONDS
    again = here.next_scheduled([each.project for each in held], since) - killed
    # Of runs that begin within seconds of each other, each may pass over what another one is looking at just now.
    late = [each.project for each in held if here.left_running(each.project)]
    for project in late:
        since = now()
        here.schedule(project)
        here.next_scheduled([project], since)
    for each in held:
        check(here, before, undisturbed_of(here, each.project), each.project)
    # Without systemd its runs outlive it, until they print: what they print goes through the worker.
    [alive] = here.hold(outlives="before compile")
    here.schedule(alive.project)
    before, since, worker = here.done(), now(), here.units["worker"]
    worker.group = False
    worker.kill()
    here.wait(lambda: worker.process.poll() is None, "a worker")
    time.sleep(2 * RESTART_SECONDS)
    assert here.state(alive.run) == "RUNNING"
    alive.go_on()
    here.ended(alive.run, "CRASHED")
    worker.group = True
    here.next_scheduled([alive.project], since)
    check(here, before, undisturbed_of(here, alive.project), alive.project)
    passed = f"; {len(late)} promotions were recorded by the run after the next alone" if late else ""
    saw(
        f"{len(held)} runs that died with it were *Crashed* after {gone:.0f} s, and told after {told:.0f} s; the next runs went "
        f"on{passed}. One that outlived it *Crashed* when it printed next",
        again,
    )


@pytest.mark.drill(31, "a deployment: SIGKILL of the Prefect server while runs are in a search and in a record")
def test_the_server_is_killed(here: House, undisturbed_of: Callable[[House, str], Ended], saw: Saw) -> None:
    held = here.hold(apirecord="before record") + here.hold(api="before compile")
    ended, again = survived(here, held, here.units["server"].kill, undisturbed_of)
    saw(f"the runs waited, and ended as if undisturbed after {ended:.0f} s", again)


def survived(
    house: House, held: list[Held], fault: Callable[[], float], undisturbed_of: Callable[[House, str], Ended]
) -> tuple[float, float]:
    """Let runs go on in the middle of a fault: they end as if undisturbed, and so does the next one of each schedule.

    Args:
        fault: does the harm; gives when it was, by `time.monotonic`.

    Returns:
        The seconds from the fault until the runs had ended, and until the next ones had.
    """
    for each in held:
        house.schedule(each.project)
    before, since = house.done(), now()
    began = fault()
    for each in held:
        each.go_on()
    ended = max(house.ended(each.run) for each in held) - began
    again = house.next_scheduled([each.project for each in held], since) - began
    for each in held:
        check(house, before, undisturbed_of(house, each.project), each.project)
    return ended, again


@pytest.mark.drill(32, "a deployment: SIGKILL of MLflow's server while runs resolve and record")
def test_mlflow_is_killed(
    on_postgresql: tuple[House, int], undisturbed_of: Callable[[House, str], Ended], saw: Saw
) -> None:
    here, _ = on_postgresql
    held = here.hold(tracked="before resolve", trackedrecord="before record")
    ended, again = survived(here, held, here.units["mlflow"].kill, undisturbed_of)
    saw(f"the steps were tried again; the runs ended as if undisturbed after {ended:.0f} s", again)


@pytest.mark.drill(33, "a deployment: SIGKILL of PostgreSQL below Prefect and MLflow, while runs search and record")
def test_postgresql_is_killed(
    on_postgresql: tuple[House, int], undisturbed_of: Callable[[House, str], Ended], saw: Saw
) -> None:
    here, port = on_postgresql
    held = here.hold(basedrecord="before record") + here.hold(based="before compile")
    database = postmaster(port)
    again = database.cmdline()
    if os.getuid() == 0:
        again = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *again]

    def kill() -> float:
        began = time.monotonic()
        database.kill()  # what it started ends when it sees that
        threading.Timer(RESTART_SECONDS, here.start, ("postgresql",), {"command": again}).start()
        return began

    ended, after = survived(here, held, kill, undisturbed_of)
    saw(
        f"it was started again after {RESTART_SECONDS:.0f} s; the runs ended as if undisturbed after {ended:.0f} s",
        after,
    )


def postmaster(port: int) -> psutil.Process:
    """The first process of the PostgreSQL that has a port."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if words and Path(words[0]).name == "postgres" and words[words.index("-p") + 1] == str(port):
                return process
    raise AssertionError(f"nothing is at {port}")


@pytest.mark.drill(34, "a deployment: SIGKILL of serving while a run promotes")
def test_serving_is_killed(here: House, undisturbed_of: Callable[[House, str], Ended], saw: Saw) -> None:
    [held] = here.hold(served="before promote")
    here.start("serving")
    ready(here, ["serving"])
    first = ask(here)
    assert first is not None and first["version"] == 1
    said = {"request_id": first["request_id"], "labels": {"label": "person"}}
    assert httpx.post(f"{here.places.serving}/v1/feedback", json=said, timeout=60).status_code == 201
    here.schedule(held.project)
    before, since = here.done(), now()
    killed = here.units["serving"].kill()
    held.go_on()
    here.wait(lambda: ask(here), "a reply")
    seconds = time.monotonic() - killed
    here.ended(held.run)
    here.wait(lambda: (reply := ask(here)) and reply["version"] == 2, "a reply of the promoted version")
    promoted = time.monotonic() - killed
    again = here.next_scheduled([held.project], since) - killed
    check(here, before, undisturbed_of(here, held.project), held.project)
    assert first["request_id"] in [entry.request_id for entry in read_feedback(here.settings.path(), held.project)]
    here.stop("serving")
    saw(
        f"it answered again after {seconds:.0f} s, and with the promoted version after {promoted:.0f} s; feedback that was "
        "confirmed was kept",
        again,
    )


def ask(here: House) -> dict[str, Any] | None:
    """What serving says of the project `served`; None while it is away."""
    with suppress(httpx.TransportError):
        got = httpx.post(f"{here.places.serving}/v1/programs/served/predict", json={"text": "How many?"}, timeout=60)
        return got.json() if got.status_code == 200 else None
    return None


@pytest.mark.drill(35, "a deployment: the network between a worker on another machine and the server is cut for 20 s")
def test_the_network_is_cut(here: House, undisturbed_of: Callable[[House, str], Ended], saw: Saw) -> None:
    here.stop("worker")
    with Relay(here.places.ports.server) as relay:
        # As docs/scaling.md starts it.
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "another"]
        there = here.places.environment | here.environment
        here.start("worker", command=command, **there | {"PREFECT_API_URL": f"http://127.0.0.1:{relay.port}/api"})
        held = here.hold(cut="before compile")

        def cut() -> float:
            began = time.monotonic()
            relay.cut()
            for each in held:
                each.go_on()
            time.sleep(CUT_SECONDS)
            relay.mend()
            return began

        ended, again = survived(here, held, cut, undisturbed_of)
        here.stop("worker")
    here.start("worker")
    saw(f"the run waited, and ended as if undisturbed after {ended:.0f} s", again)


@pytest.mark.drill(
    36, "a deployment: the clock jumps an hour back, and later an hour ahead, each in the middle of a search"
)
def test_the_clock_jumps(
    tmp_path: Path, empty_mlflow: Path, undisturbed_of: Callable[[House, str], Ended], saw: Saw
) -> None:
    clock = Clock(tmp_path)
    with house(tmp_path / "under a clock", UNDER_A_CLOCK, empty_mlflow, **clock.environment) as here:
        [held] = here.hold(back="before compile")
        before = here.done()
        clock.move(-HOUR)
        time.sleep(2 * RESTART_SECONDS)
        held.go_on()
        here.ended(held.run)
        here.ended(here.begin(held.project))
        check(here, before, undisturbed_of(here, held.project), held.project)
        [held] = here.hold(ahead="before compile")
        here.schedule(held.project)
        before, since = here.done(), now()
        clock.move(0)
        began = time.monotonic()
        time.sleep(2 * RESTART_SECONDS)
        held.go_on()
        ended = here.ended(held.run) - began
        again = here.next_scheduled([held.project], since) - began
        check(here, before, undisturbed_of(here, held.project), held.project)
    saw(f"both runs ended as if undisturbed, the later one after {ended:.0f} s", again)


class Clock:
    """The clock of all processes of a house; see clock.c. Skips the test where it cannot be compiled or is not obeyed."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            pytest.skip("A clock that jumps needs Linux and a C compiler.")
        library, self._file = folder / "clock.so", folder / "clock"
        source = str(Path(__file__).with_name("clock.c"))
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "DRILL_CLOCK": str(self._file)}
        self.move(HOUR)
        command = [sys.executable, "-c", "import time; print(time.time())"]
        said = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, check=True)
        assert abs(float(said.stdout) - HOUR - time.time()) < 60
        self.move(0)

    def move(self, seconds: int) -> None:
        """How far the clock is from the true one, from now on."""
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.mark.drill(37, "a deployment: the disk is full at a write of a run, early, in the middle and late")
def test_the_disk_is_full(here: House, undisturbed_of: Callable[[House, str], Ended], saw: Saw) -> None:
    names = ("fulla", "fullb", "fullc")
    undisturbed = {name: undisturbed_of(here, name) for name in names}
    runs, before = {}, here.done()
    for name, share in zip(names, (0.1, 0.5, 0.95), strict=True):
        here.put_fault(name, write=int(share * undisturbed[name].writes), errno=NO_SPACE)
        runs[name] = here.begin(name)
    slowest, failed = 0.0, 0
    for name, run in runs.items():
        state = here.wait(lambda run=run: (now := here.state(run)) in OVER and now, f"the end of {name}")
        if state == "FAILED":
            failed += 1
            cause = datetime.fromisoformat(here.run(run)["state"]["timestamp"])
            slowest = max(slowest, here.alert("failed optimize-program", run, cause))
        here.schedule(name)
    ended = time.monotonic()
    again = here.next_scheduled(names, now()) - ended
    for name in names:
        check(here, before, undisturbed[name], name)
    assert slowest < ALERT_SECONDS
    assert not list(here.settings.path().rglob("*.partial"))
    saw(f"{failed} of {len(runs)} runs failed, and told after {slowest:.1f} s", again)
