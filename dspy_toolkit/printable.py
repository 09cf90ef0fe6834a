"""Text of data, models and addresses as it may be shown: without control characters, and without passwords.

An escape sequence in a row would otherwise be obeyed by the terminal that shows it: it moves the cursor, writes over lines,
sets the title, or makes a link.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PASSWORD = re.compile(
    r"(//[^/@:\s]*:)[^/@\s]*(?=@)|([?&;](?:password|passwd|pwd|token|secret|api_?key)=)[^&;#\s]*", re.I
)


def printable(text: str) -> str:
    r"""`text` with every control character but line ends and tabs written out: `\x1b` for an escape."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def without_password(text: str) -> str:
    """`text` with every password of an address in it masked."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", text)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON for a terminal or a pipe; what JSON has no form for is written as text."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    # JSON escapes the controls below a space by itself, and leaves those behind the letters.
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


class PrintableRecord(logging.LogRecord):
    """What is logged, as it may be shown; for `logging.setLogRecordFactory` in a process that has a terminal."""

    def getMessage(self) -> str:  # noqa: N802  (the logging module's name)
        """What the event says."""
        return printable(super().getMessage())
