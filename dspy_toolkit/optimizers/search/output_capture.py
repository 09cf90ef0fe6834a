"""Keeping DSPy's optimizers off the terminal: they print, draw bars and log tracebacks, and take no for no answer.

What code prints under `quiet`, in its own thread and context, becomes debug lines of this module's logger, and so does
what the optimizers log anywhere. Other threads print as before, and so does what runs under `aloud`. When the last
`quiet` of the process ends, stdout, stderr and the loggers are as they were.
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

_silent: ContextVar[bool] = ContextVar("silent", default=False)
_lock = threading.Lock()
_installed: dict[str, _Switch] = {}
_depth = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn what the block prints, and what optimizers log meanwhile, into debug lines."""
    filtered = [handler for name in NOISY for handler in logging.getLogger(name).handlers]
    no_echo = _NoEcho()
    for handler in filtered:
        handler.addFilter(no_echo)
    _install()
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
        _remove()
        for handler in filtered:
            handler.removeFilter(no_echo)


@contextlib.contextmanager
def aloud() -> Iterator[None]:
    """Let the block print, inside `quiet`: a progress display, say."""
    token = _silent.set(False)
    try:
        yield
    finally:
        _silent.reset(token)


class _Switch:
    """Stands in for stdout or stderr while something is quiet. Not `contextlib.redirect_stdout`, which is every thread's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.removed = False

    def write(self, text: str) -> int:
        if not (_silent.get() or (_from_bar() and (self.removed or _in_bar_thread()))):
            return self._stream.write(text)
        # Aloud: a log handler that prints, as Prefect's does, would come back here and never end.
        with aloud():
            for line in text.splitlines():
                if line.strip():
                    log.debug("%s", line.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _from_bar() -> bool:
    """Whether tqdm writes. A bar that an error left open is drawn for the last time when it is collected, at any time."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("tqdm.")


def _in_bar_thread() -> bool:
    """Whether this is the thread in which tqdm redraws bars that stand still."""
    return type(threading.current_thread()).__name__ == "TMonitor"


def _install() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            for name in ("stdout", "stderr"):
                _installed[name] = _Switch(getattr(sys, name))
                setattr(sys, name, _installed[name])


def _remove() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            for name, switch in _installed.items():
                switch.removed = True
                # Where somebody else has put a stream of theirs since, it is theirs to take away.
                if getattr(sys, name) is switch:
                    setattr(sys, name, switch._stream)
            _installed.clear()


class _NoEcho(logging.Filter):
    """Turns what DSPy logs into debug lines of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        # A handler may serve the root logger as well, and then sees our own lines too.
        if not f"{record.name}.".startswith(NAMES):
            return True
        if not hasattr(record, "hushed"):  # once, however many handlers there are
            record.hushed = True
            with aloud():  # for a log handler that prints, as in `_Switch.write`
                log.debug("%s: %s", record.name, record.getMessage())
        return False
