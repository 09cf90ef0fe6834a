"""Text of data, models and addresses as it may be shown: without control characters, keys and passwords.

An escape sequence in a row would otherwise be obeyed by the terminal that shows it: it moves the cursor, writes over lines,
sets the title, or makes a link. A key comes back in what a server says of a request that it refuses.

Covered: what goes through the console, errors of the toolkit and what they come from, and what is logged: in a process that
has a terminal all of it, elsewhere the keys. Not covered: what other packages write into files and databases by themselves,
and the log of a program that makes its records in a way of its own (`logging.setLogRecordFactory`).
"""

from __future__ import annotations

import json
import logging
import os
import re
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PASSWORD = re.compile(
    r"(//[^/@:\s]*:)[^/@\s]*(?=@)|([?&;](?:password|passwd|pwd|token|secret|api_?key)=)[^&;#\s]*", re.I
)
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH_STRING)$", re.I)
MASK = "***"
SHORTEST = 8
"""A secret of fewer characters may be a word that people say, such as a placeholder for a key."""
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """Show `secret` nowhere in this process from now on, whatever package logs it, and at whatever level."""
    if len(secret) < SHORTEST:
        return
    _secrets.add(secret)
    if logging.getLogRecordFactory() is logging.LogRecord:
        logging.setLogRecordFactory(MaskedRecord)


def hide_environment() -> None:
    """Show no value of an environment variable whose name says that it is a secret, such as OPENAI_API_KEY."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            hide(value)


def printable(text: str) -> str:
    r"""`text` without hidden secrets, and its control characters but line ends and tabs written out: `\x1b` for an escape."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", without_secrets(text))


def without_secrets(text: str) -> str:
    """`text` with every hidden secret in it masked."""
    for secret in _secrets.copy():
        text = text.replace(secret, MASK)
    return text


def without_password(text: str) -> str:
    """`text` with every password of an address in it masked."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON for a terminal or a pipe; what JSON has no form for is written as text."""
    text = without_secrets(json.dumps(value, indent=indent, ensure_ascii=False, default=str))
    # JSON escapes the controls below a space by itself, and leaves those behind the letters.
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


class MaskedRecord(logging.LogRecord):
    """What is logged, without hidden secrets."""

    def getMessage(self) -> str:  # noqa: N802  (the logging module's name)
        """What the event says."""
        return without_secrets(super().getMessage())


class PrintableRecord(logging.LogRecord):
    """What is logged, as it may be shown; for `logging.setLogRecordFactory` in a process that has a terminal."""

    def getMessage(self) -> str:  # noqa: N802  (the logging module's name)
        """What the event says."""
        return printable(super().getMessage())
