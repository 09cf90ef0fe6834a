"""Locks over threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dspy_toolkit.errors import LedgerError, StoreError
from dspy_toolkit.locks import held, take

TAKE = "import sys; from pathlib import Path; from dspy_toolkit.locks import take; sys.exit(take(Path(sys.argv[1])) is None)"


def test_a_second_thread_waits(tmp_path: Path) -> None:
    path, order = tmp_path / "a" / "lock", []

    def second() -> None:
        with held(path, 30):
            order.append("second")

    with held(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_waiting_in_vain_is_one_line_that_may_pass(tmp_path: Path) -> None:
    with (
        held(tmp_path / "lock"),
        pytest.raises(LedgerError, match=r"held .*lock for 0\.05 s\. Wait until it ends") as caught,
        held(tmp_path / "lock", 0.05, LedgerError),
    ):
        pass
    assert caught.value.retryable and not LedgerError.retryable


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write"), held(tmp_path / "file" / "lock"):
        pass


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_taken_is_taken_for_all_others(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    path.mkdir() if kind == "folder" else path.write_text("")
    other = [sys.executable, "-c", TAKE, str(path)]
    taken = take(path)
    assert taken is not None and take(path) is None
    assert subprocess.run(other, timeout=30, check=False).returncode == 1
    taken.release()
    assert subprocess.run(other, timeout=30, check=False).returncode == 0  # and its end gives it back
    assert take(path) is not None


def test_what_was_made_anew_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that nobody can find any more keeps nobody out."""
    import fcntl

    path = tmp_path / "it"
    path.write_text("")
    flock = fcntl.flock

    def replaced(file: int, how: int) -> None:
        path.unlink()
        path.write_text("")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    assert take(path) is None
