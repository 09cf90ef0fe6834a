"""Locks over threads and processes of one machine.

Covered: waiting for a lock file (`held`), taking a file or folder that nobody has (`take`). The operating system gives a lock
back when the process that holds it ends, however it ends.

Not covered: processes of other machines, unless the folder lies on a file system that they share and that knows locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dspy_toolkit.durable import make_folder, writing
from dspy_toolkit.errors import StoreError, ToolkitError

LOCK_SECONDS = 60.0
BETWEEN_TRIES = 0.05
"""Seconds."""


@contextmanager
def held(path: Path, seconds: float | None = None, refusal: type[ToolkitError] = StoreError) -> Iterator[None]:
    """Hold the lock file `path`, which is made when it is missing and stays behind.

    Args:
        seconds: to wait for another holder, 60 by default.
        refusal: what a failure is raised as.

    Raises:
        StoreError: another holder kept it all that time (retryable), or it cannot be written.
    """
    seconds = LOCK_SECONDS if seconds is None else seconds
    until = time.monotonic() + seconds
    with writing(path, refusal):
        make_folder(path.parent)
        # Opened anew by every caller: a shared one would let two threads in together.
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _locked(file, path, refusal):
            if time.monotonic() >= until:
                busy = refusal(
                    f"Another process has held {path} for {seconds:g} s. Wait until it ends, then run again."
                )
                busy.retryable = True
                raise busy
            time.sleep(BETWEEN_TRIES)
        yield
    finally:
        os.close(file)  # and with it goes the lock


def _locked(file: int, path: Path, refusal: type[ToolkitError]) -> bool:
    """Whether the lock on an open file was free, and is this caller's now."""
    with writing(path, refusal):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@dataclass(frozen=True)
class Taken:
    """A file or folder that this process has locked."""

    path: Path
    _file: int

    def lasting(self) -> bool:
        """Whether its path still leads to it. A lock on what somebody has removed keeps nobody out."""
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def fileno(self) -> int:
        """Of what is locked. A child process that inherits it shares the lock."""
        return self._file

    def release(self) -> None:
        """Give it back."""
        os.close(self._file)


def take(path: Path) -> Taken | None:
    """Lock a file or folder that exists; None when somebody else has it. Each call is a holder of its own.

    Raises:
        OSError: it cannot be opened or locked.
    """
    taken = Taken(path, os.open(path, os.O_RDONLY))
    try:
        fcntl.flock(taken._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if taken.lasting():
            return taken
    except BlockingIOError:
        pass
    except OSError:
        taken.release()
        raise
    taken.release()
    return None
