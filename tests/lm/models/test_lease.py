"""One accelerator, one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_toolkit.errors import LeaseTimeout, StoreError
from dspy_toolkit.lm.models.lease import acquire, lease_path
from dspy_toolkit.locks import take

HOLD = """
import sys, time
from pathlib import Path
from dspy_toolkit.lm.models.lease import acquire
lease = acquire("cpu", 10, Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
lease.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the accelerator until it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_second_process_waits_in_vain(
    path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LeaseTimeout, match=r"cpu after 0\.3 s .*LEASE=share") as caught:
        acquire("cpu", 0.3, path)
    assert caught.value.retryable
    assert "Another process is using the cpu" in caplog.text


def test_the_second_process_waits_and_gets_it(path: Path, holder: subprocess.Popen[str]) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            tell(holder)
        return False

    acquire("cpu", 30, path, stop).release()
    assert asked >= 2


def test_a_killed_holder_releases(path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    acquire("cpu", 10, path).release()


def test_giving_up(path: Path, holder: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    with pytest.raises(LeaseTimeout):
        acquire("cpu", 600, path, stop=lambda: True)
    assert time.monotonic() - started < 5


def test_engines_of_one_process_share_it(path: Path) -> None:
    first, second = acquire("cpu", 0, path), acquire("cpu", 0, path)
    first.release()
    code = "import sys; from pathlib import Path; from dspy_toolkit.lm.models.lease import acquire; acquire('cpu', 0, Path(sys.argv[1]))"
    other = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(other, capture_output=True, timeout=30, check=False).returncode == 1
    second.release()
    assert subprocess.run(other, capture_output=True, timeout=30, check=False).returncode == 0


def test_it_belongs_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease_path("metal") != lease_path("cpu")
    assert str(os.getuid()) in lease_path("cpu").parent.name
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a job of a batch system, beside a terminal
    assert tmp_path not in lease_path("cpu").parents

    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StoreError, match=r"belongs to another user.*LEASE=share"):
        acquire("cpu", 0, tmp_path / "cpu")


def test_a_file_that_is_removed_lets_no_second_holder_in(path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(OSError, match="irectory|permitted"):
        path.unlink()
    with pytest.raises(LeaseTimeout):
        acquire("cpu", 0.2, path)


def test_a_folder_that_is_removed_is_noticed(path: Path) -> None:
    first, second = acquire("cpu", 0, path), acquire("cpu", 0, path)
    assert first.in_force()
    path.rmdir()
    assert not first.in_force()
    first.release()
    third = acquire("cpu", 0, path)  # of the folder that is there now, for all engines of this process
    assert third.in_force() and second.in_force()
    third.release()
    second.release()
    assert take(path) is not None
