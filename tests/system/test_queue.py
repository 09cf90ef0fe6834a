"""Two hundred runs in the queue of one worker, on Prefect's own server with SQLite: all end well, and none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.queue import measure
from tests.benchmarks.test_queue import running_below

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]


def test_two_hundred_runs_are_drained(tmp_path: Path) -> None:
    found = measure(tmp_path, 200, 4)["nothing"]
    print(found)
    assert (found["ended"], found["lost"]) == ({"COMPLETED": 200}, 0)
    assert not running_below(tmp_path)
