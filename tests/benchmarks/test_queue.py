"""Counting what a queue costs, and a small queue with Prefect's own server and worker."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from benchmarks.queue import measure, requests_in, size

ROOT = Path(__file__).parents[2]
LOG = """
03:08:23.479 | INFO    | uvicorn.access - 127.0.0.1:47270 - "GET /api/health?by=benchmark HTTP/1.1" 200
03:08:37.287 | INFO    | uvicorn.error - 127.0.0.1:55162 - "WebSocket /api/work_pools/mlx/workers/connect" [accepted]
03:08:38.054 | INFO    | uvicorn.error - 127.0.0.1:50716 - "WebSocket /api/events/in" [accepted]
03:08:38.100 | INFO    | uvicorn.access - 127.0.0.1:50720 - "POST /api/flow_runs/cb8f12c6-abc1-4199-85d4-700b184e7f6c/set_state HTTP/1.1" 503
03:08:38.300 | INFO    | uvicorn.access - 127.0.0.1:50720 - "POST /api/flow_runs/1f81a9c0-7c53-477f-894f-7efb7e6b2dfa/set_state HTTP/1.1" 201
03:08:38.400 | INFO    | uvicorn.access - 127.0.0.1:50720 - "GET /api/csrf-token?client=5f0a3a4e-12d1-4e34-9d1a-03a0b7a7a0b1 HTTP/1.1" 422
03:09:55.639 | INFO    | uvicorn.access - 127.0.0.1:49980 - "POST /api/work_pools/mlx/get_scheduled_flow_runs HTTP/1.1" 200
03:09:59.159 | INFO    | prefect.server.services.scheduler - Scheduled 0 runs.
"""


def test_requests_are_those_of_others_and_have_no_ids() -> None:
    asked = requests_in(LOG)
    assert dict(asked.routes) == {
        "POST /flow_runs/…/set_state": 2,
        "GET /csrf-token": 1,
        "POST /work_pools/…/get_scheduled_flow_runs": 1,
    }
    assert (asked.refused, asked.sockets) == (1, 2)


def test_a_databases_size_has_what_is_in_its_log_and_not_what_was_deleted(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE rows (text)")
        empty = size(file)
        database.executemany("INSERT INTO rows VALUES (?)", [("x" * 1000,)] * 1000)
        full = size(file)
        assert full - empty > 1_000_000 > file.stat().st_size
        database.execute("DELETE FROM rows")
        assert size(file) - empty < 100_000


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_three_runs_are_drained_and_counted(tmp_path: Path) -> None:
    found = measure(tmp_path, 3, 2, real=1, poll=1, idle_seconds=5)
    nothing, scoring = found["nothing"], found["scoring"]
    assert (nothing["ended"], nothing["lost"]) == ({"COMPLETED": 3}, 0)
    assert (scoring["ended"], scoring["lost"]) == ({"COMPLETED": 1}, 0)
    # Each run is told to be Pending, Running and Completed, which is three requests, and leaves as many events.
    assert nothing["routes"]["POST /flow_runs/…/set_state"] >= 3
    assert nothing["requests"] > 3 and nothing["events"] > 3 and nothing["bytes"] > 0
    parts = nothing["parts"]
    assert all(seconds > 0 for seconds in parts.values()), parts
    assert parts["its process starts and imports"] > parts["the flow itself"]
    # A process of a run imports Prefect, which takes the processor longer than the server's part.
    assert nothing["worker"] > nothing["server"] > 0
    assert found["queued"]["a_second"] > 0 and found["heartbeats"]["a_second"] > 0
    assert not running_below(tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.queue", "--runs", "50", "--real", "0"]
    with (tmp_path / "said").open("wb") as output, subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=output, stderr=output
    ) as process:  # fmt: skip
        try:
            await_(lambda: "PREFECT__FLOW_RUN_ID" in names(running_below(tmp_path)), process)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 130, (tmp_path / "said").read_text()
        finally:
            left = running_below(tmp_path)
            for each in left:
                each.kill()
            process.kill()
    assert not left, left


def running_below(folder: Path) -> list[psutil.Process]:
    """The processes whose home is in a folder: server, worker and runs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DSPY_TOOLKIT_HOME", "").startswith(f"{folder}{os.sep}"):
                found.append(process)
        except psutil.Error:  # somebody else's, or over by now
            continue
    return found


def names(processes: Sequence[psutil.Process]) -> set[str]:
    """Of the variables that they were started with."""
    found: set[str] = set()
    for process in processes:
        try:
            found |= process.environ().keys()
        except psutil.Error:
            continue
    return found


def await_(there: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 300
    while not there():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.5)
