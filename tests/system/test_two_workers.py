"""Two workers in separate folders share a race; one is killed in the middle with its run, and its work is taken over.

They share a home, as machines would that mount one folder. The killed run is found by its missing heartbeats.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.lm.openai_server import OpenAIServer
from tests.system.fresh_clone import Model, environment, make_clone, terminal
from tests.system.test_make_up import started_by

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

RACE = """
make up
touch up
.venv/bin/python -m flows.compare_optimizers --project router --budget 100 --workers
echo "=== down"
make down
"""


def runs_in(folder: Path) -> list[psutil.Process]:
    """The processes of flow runs that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if "PREFECT__FLOW_RUN_ID" in process.environ() and Path(process.cwd()) == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def begun(home: Path, processes: list[psutil.Process]) -> bool:
    """Whether the run of one of them is Running."""
    with closing(sqlite3.connect(home / "prefect/prefect.db")) as database:
        found = database.execute("SELECT replace(id, '-', '') FROM flow_run WHERE state_type = 'RUNNING'").fetchall()
    return bool(
        {each.environ()["PREFECT__FLOW_RUN_ID"].replace("-", "") for each in processes} & {name for (name,) in found}
    )


def test_a_worker_is_killed_in_the_middle_of_a_race(tmp_path: Path) -> None:
    first, second = tmp_path / "first clone", tmp_path / "second clone"
    make_clone(first)
    make_clone(second)
    home = first / ".dspy-toolkit"
    with OpenAIServer(Model()) as model:
        reader = environment(first, tmp_path / "HOME", model.address) | {"DSPY_TOOLKIT_LM__LEASE": "share"}
        other: subprocess.Popen[bytes] | None = None
        try:
            with terminal(RACE, first, reader, tmp_path / "log") as at, (tmp_path / "second.log").open("w") as log:
                await_(lambda: (first / "up").exists(), 900, at.shell)
                shutil.copy(first / "prefect.toml", second)
                mine = reader | {
                    "DSPY_TOOLKIT_HOME": str(home),
                    "PYTHONPATH": str(second),
                    "TOOLKIT_SERVICES": str(home),
                }
                mine |= {"DO_NOT_TRACK": "1"}
                command = [second / ".venv/bin/python", "-m", "prefect", "worker", "start", "--pool", "mlx"]
                other = subprocess.Popen(
                    [*command, "--name", "second", "--limit", "4"], cwd=second, env=mine, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
                await_(lambda: begun(home, runs_in(second)), 900, at.shell)
                time.sleep(3)  # its first heartbeat is on its way
                killed = [
                    *runs_in(second),
                    *psutil.Process(other.pid).children(recursive=True),
                    psutil.Process(other.pid),
                ]
                for process in killed:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                other.wait(30)
                printed = at.wait(1800)
        finally:
            left = started_by(home)
            for process in left:
                process.kill()
    print(printed)
    race, _ = printed.split("=== down")
    assert "The pool" in race and "Traceback" not in race
    with closing(sqlite3.connect(home / "prefect/prefect.db")) as database:
        states = [state for (state,) in database.execute("SELECT state_type FROM flow_run WHERE name LIKE 'score %'")]
    assert states.count("CRASHED") >= 1 and states.count("COMPLETED") >= 3, states
    assert not left, left


def await_(there: Callable[[], object], seconds: float, shell: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until and shell.poll() is None
        time.sleep(0.3)
