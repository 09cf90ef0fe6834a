"""The edge between the toolkit and a terminal: how a command, or a flow started by hand, ends.

    an error of the toolkit       `Error: message` on stderr, exit code 1, no traceback
    a disk that is full, or a folder that may not be written   the same
    Ctrl-C                        nothing, exit code 130
    a closed pipe                 nothing, exit code 0 (`… | head`)

Any other exception is a bug, and is shown with its traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.printable import PrintableRecord, printable

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

_DISK = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EACCES: "Make it writable, or set DSPY_TOOLKIT_HOME to a folder that is",
    errno.EROFS: "Set DSPY_TOOLKIT_HOME to a folder that can be written",
}


@contextmanager
def boundary() -> Iterator[None]:
    """End the process as the module says. Also a decorator: `@boundary()`."""
    try:
        try:
            yield
        finally:
            # Else a closed pipe is noticed only at exit, where Python prints a message of its own.
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # isolation boundary: sorted here, and explained or raised
        message = message_of(error)
        said = "".join(traceback.format_exception(error)).rstrip() if message is None else f"Error: {message}"
        print(printable(said), file=sys.stderr)
        raise SystemExit(1) from None


def message_of(error: BaseException) -> str | None:
    """The message to show for `error`; None when it is a bug."""
    if isinstance(error, ToolkitError):
        return str(error)
    from dspy_toolkit.lm import root_error

    # DSPy and LiteLLM wrap what the engine raised.
    if known := root_error(error):
        return str(known)
    if isinstance(error, OSError) and (advice := _DISK.get(error.errno or 0)):
        return f"{error}. {advice}."
    return None


def show_log(settings: Settings) -> None:
    """Send the toolkit's log, from `observe.log_level` up, to stderr, one line an event.

    The logs of other libraries are not changed, except that control characters are removed.
    """
    logging.setLogRecordFactory(PrintableRecord)
    logger = logging.getLogger("dspy_toolkit")
    logger.setLevel(settings.observe.log_level)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
        logger.propagate = False


def show_lines(name: str) -> None:
    """Send a log of ours whose events are whole lines, such as JSON for a program, to stderr as they are."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr(bare=True))
        logger.propagate = False


class _ToStderr(logging.Handler):
    """Prints to the current stderr, which a progress bar or a test may have replaced."""

    def __init__(self, *, bare: bool = False) -> None:
        """Args: bare: without the level before it."""
        super().__init__()
        self._bare = bare

    def emit(self, record: logging.LogRecord) -> None:
        before = "" if self._bare else f"{record.levelname.capitalize()}: "
        # In one piece: each handler has a lock of its own, and two threads' lines must not mix.
        sys.stderr.write(f"{before}{record.getMessage()}\n")
