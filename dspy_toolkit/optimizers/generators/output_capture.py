"""Keeping DSPy's optimizers off the terminal: they print, draw progress bars and log tracebacks, and have no setting
for it.

What code prints under `capture_output`, in its own thread and context, becomes debug lines of this module's logger, and
so does what the optimizers log in any thread. Other threads print as before, and so does code under `capture_disabled`.
When the last `capture_output` of the process ends, stdout, stderr and the loggers are as they were.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

log = logging.getLogger(__name__)

NOISY = ("dspy", "gepa", "optuna")
NAMES = ("dspy.", "gepa.", "optuna.")

_capturing: ContextVar[bool] = ContextVar("capturing", default=False)
_lock = threading.Lock()
_installed: dict[str, _CapturedStream] = {}
_depth = 0


@contextlib.contextmanager
def capture_output() -> Iterator[None]:
    """Turn what the block prints, and what optimizers log meanwhile, into debug lines."""
    filtered = [handler for name in NOISY for handler in logging.getLogger(name).handlers]
    to_debug = _ToDebug()
    for handler in filtered:
        handler.addFilter(to_debug)
    _install()
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)
        _remove()
        for handler in filtered:
            handler.removeFilter(to_debug)


@contextlib.contextmanager
def capture_disabled() -> Iterator[None]:
    """Let the block print inside `capture_output`, as a progress display does."""
    token = _capturing.set(False)
    try:
        yield
    finally:
        _capturing.reset(token)


class _CapturedStream:
    """In place of stdout or stderr while output is captured. `contextlib.redirect_stdout` redirects every thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.removed = False

    def write(self, text: str) -> int:
        if not (_capturing.get() or (_from_bar() and (self.removed or _in_bar_thread()))):
            return self._stream.write(text)
        # A log handler that prints, as Prefect's does, would otherwise end up here again, without end.
        with capture_disabled():
            for line in text.splitlines():
                if line.strip():
                    log.debug("%s", line.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _from_bar() -> bool:
    """Whether tqdm writes: a bar that an error left open is drawn again when it is garbage-collected, at any time."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("tqdm.")


def _in_bar_thread() -> bool:
    """Whether this is the thread in which tqdm redraws bars that do not advance."""
    return type(threading.current_thread()).__name__ == "TMonitor"


def _install() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            for name in ("stdout", "stderr"):
                _installed[name] = _CapturedStream(getattr(sys, name))
                setattr(sys, name, _installed[name])


def _remove() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            for name, switch in _installed.items():
                switch.removed = True
                # A stream that other code has put in place since is not ours to remove.
                if getattr(sys, name) is switch:
                    setattr(sys, name, switch._stream)
            _installed.clear()


class _ToDebug(logging.Filter):
    """Turns what the optimizers log into debug lines of this module."""

    def filter(self, record: logging.LogRecord) -> bool:
        # A handler may serve the root logger too, and then sees this module's own lines.
        if not f"{record.name}.".startswith(NAMES):
            return True
        if not hasattr(record, "debugged"):  # once, however many handlers there are
            record.debugged = True
            with capture_disabled():  # for a log handler that prints, as in `_CapturedStream.write`
                log.debug("%s: %s", record.name, record.getMessage())
        return False
