"""One accelerator, one process: an OS file lock for each accelerator and user.

Two processes that decode on one accelerator are both slower than one after the other, and together they may not fit. The
lock lies in the system's temporary folder, so that processes with different homes see each other, and the operating system
releases it when its holder dies. Engines of one process share it. `lm.lease = "share"` does without.
"""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from dspy_toolkit.errors import LeaseTimeout

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1

_guard = threading.Lock()
_holders: dict[str, tuple[FileLock, int]] = {}


class Lease:
    """The accelerator, held until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def release(self) -> None:
        """Give it back; other processes may have it when the last engine of this one has."""
        with _guard:
            lock, holders = _holders.pop(str(self.path))
            if holders > 1:
                _holders[str(self.path)] = lock, holders - 1
            else:
                lock.release()


def lease_path(device: str) -> Path:
    """The lock's file for this user's `device` (`metal`, `cuda`, `cpu`)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"dspy-toolkit-{user}-{device}.lock"


def acquire(
    device: str, wait_seconds: float, path: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> Lease:
    """Hold the accelerator; release with `.release()`.

    Args:
        wait_seconds: while another process holds it.
        path: the lock's file; `lease_path(device)` by default.
        stop: asked many times a second while waiting; true gives up at once.

    Raises:
        LeaseTimeout: another process still holds it after `wait_seconds`, or `stop` said so.
    """
    path = path or lease_path(device)
    if _take(path):
        return Lease(path)
    log.warning("Another process is using the %s; waiting up to %g s for it (%s).", device, wait_seconds, path)
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline and not stop():
        if _take(path):
            return Lease(path)
        time.sleep(POLL_SECONDS)
    raise LeaseTimeout(
        f"Another process still holds the {device} after {wait_seconds:g} s ({path}). "
        "Wait for it to finish, raise lm.lease_seconds, or set DSPY_TOOLKIT_LM__LEASE=share to run beside it."
    )


def _take(path: Path) -> bool:
    with _guard:
        lock, holders = _holders.get(str(path), (None, 0))
        if lock is None:
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        _holders[str(path)] = lock, holders + 1
        return True
