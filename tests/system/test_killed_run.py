"""A run on Prefect's temporary server that is killed outright: no server survives, and the run has crashed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SLEEP = """
import flows
import time
from prefect import flow
from flows.temporary_server import watch_run

@flow(on_running=[watch_run])
def sleep():
    print("running", flush=True)
    time.sleep(600)

sleep()
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def servers(home: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if "PREFECT__SERVER_EPHEMERAL" in process.environ() and process.environ().get("DSPY_TOOLKIT_HOME") == home:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_killed_run_leaves_no_server_and_has_crashed(fresh_home: dict[str, str]) -> None:
    home = fresh_home["DSPY_TOOLKIT_HOME"]
    command = [sys.executable, "-c", SLEEP]
    with subprocess.Popen(command, env=fresh_home, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "running\n"
        assert servers(home)
        run.kill()
    began = time.monotonic()
    while servers(home) and time.monotonic() - began < 60:
        time.sleep(0.2)
    assert not servers(home)
    with closing(sqlite3.connect(Path(home, "prefect", "prefect.db"))) as database:
        assert database.execute("SELECT state_type FROM flow_run").fetchall() == [("CRASHED",)]
