"""The edge between the toolkit and a terminal: how a command, or a flow started by hand, ends.

    an error of the toolkit       `Error: message` on stderr, exit code 1, no traceback
    a disk that is full           the same
    Ctrl-C                        nothing, exit code 130
    a reader that went away       nothing, exit code 0 (`… | head`)

Any other exception is a defect, and keeps its traceback.
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
    errno.EROFS: "Set DSPY_TOOLKIT_HOME to a folder that can be written",
}


@contextmanager
def boundary() -> Iterator[None]:
    """End the process as the module says. Also a decorator: `@boundary()`."""
    try:
        try:
            yield
        finally:
            # Else a reader that went away is noticed only at exit, where Python prints a complaint of its own.
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered goes nowhere, quietly.
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
    """What to tell a person about `error`; None when it is a defect."""
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

    Other libraries' is left as it is, but for control characters.
    """
    logging.setLogRecordFactory(PrintableRecord)
    logger = logging.getLogger("dspy_toolkit")
    logger.setLevel(settings.observe.log_level)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
        logger.propagate = False


class _ToStderr(logging.Handler):
    """Prints to whatever stderr is at the time, so that a progress bar or a test may stand in."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.capitalize()}: {record.getMessage()}", file=sys.stderr)
