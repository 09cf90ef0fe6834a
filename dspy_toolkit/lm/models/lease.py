"""One accelerator, one process: a lock for each accelerator and user.

Two processes that decode on one accelerator are both slower than one after the other, and together they may not fit.
The lock lies outside every home, so that processes with different homes see each other, in a folder of the user's own;
the operating system gives it back when its holder dies. Engines of one process share it. `lm.lease = "share"` does
without.

What is locked is a folder, not a file in it: whoever tidies up files there lets no second holder in. Who removes the
folder does, until the first one asks whether its lease is still `in_force`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dspy_toolkit.errors import LeaseTimeout, StoreError
from dspy_toolkit.locks import Taken, take

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
TEMPORARY = Path("/tmp")  # noqa: S108  (whose folder it is there is checked)
"""On this machine's disk, and the same for all processes of a user, whatever their TMPDIR."""

_guard = threading.Lock()
_holders: dict[str, tuple[Taken, int]] = {}


class Lease:
    """The accelerator, held until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def in_force(self) -> bool:
        """Whether it still keeps other processes out."""
        return _holders[str(self.path)][0].lasting()

    def fileno(self) -> int:
        """Of the lock: a child process that inherits it holds the accelerator too, for as long as it lives."""
        return _holders[str(self.path)][0].fileno()

    def release(self) -> None:
        """Give it back; other processes may have it when the last engine of this one has."""
        with _guard:
            taken, holders = _holders.pop(str(self.path))
            if holders > 1:
                _holders[str(self.path)] = taken, holders - 1
            else:
                taken.release()


def lease_path(device: str) -> Path:
    """The folder whose lock stands for this user's `device` (`metal`, `cuda`, `cpu`)."""
    folder = TEMPORARY if TEMPORARY.is_dir() else Path(tempfile.gettempdir())
    return folder / f"dspy-toolkit-{os.getuid()}" / device


def acquire(
    device: str, wait_seconds: float, path: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> Lease:
    """Hold the accelerator; release with `.release()`.

    Args:
        wait_seconds: while another process holds it.
        path: the lock's folder; `lease_path(device)` by default.
        stop: asked many times a second while waiting; true gives up at once.

    Raises:
        LeaseTimeout: another process still holds it after `wait_seconds`, or `stop` said so.
        StoreError: the lock's folder cannot be made, or belongs to another user.
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
        taken, holders = _holders.get(str(path), (None, 0))
        if taken is None or not taken.lasting():
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if path.parent.lstat().st_uid != os.getuid():  # everybody may make folders in /tmp
                    raise PermissionError(f"{path.parent} belongs to another user")
                path.mkdir(exist_ok=True)
                before, taken = taken, take(path)
            except OSError as error:
                raise StoreError(
                    f"The accelerator's lock {path} cannot be had: {error.strerror or error}. Remove the folder, or set "
                    "DSPY_TOOLKIT_LM__LEASE=share to do without."
                ) from error
            if taken is None:
                return False
            if before is not None:
                before.release()
        _holders[str(path)] = taken, holders + 1
        return True
