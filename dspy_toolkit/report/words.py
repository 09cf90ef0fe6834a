"""Values as the page writes them: texts, JSON, shares, counts, times.

Not covered: escaping, which is the template's.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

LONGEST = 20_000
"""Characters of one value that the page shows."""
ONE_LINE = 80
"""Characters up to which a list or a dictionary stays on one line."""

# What HTML cannot hold: controls other than tab and newline, halves of surrogate pairs, noncharacters.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MINUS = "\N{MINUS SIGN}"


class Field(NamedTuple):
    """A name, and its value as text; the name is empty where there is only one value."""

    name: str
    text: str


def shown(value: Any) -> str:
    """A JSON value as text: strings unchanged, anything else as JSON, indented where it is long."""
    if isinstance(value, str):
        return readable(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > ONE_LINE and isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, default=str, indent=2)
    return readable(text)


def readable(text: str) -> str:
    """`text` without characters that HTML cannot hold, and cut at LONGEST, with a note of its length."""
    text = _UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… (the first {LONGEST:,} of {len(text):,} characters)"


def fields_in(text: str) -> tuple[Field, ...]:
    """The fields of a JSON object; anything else as one field without a name, and `null` as none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return (Field("", readable(text)),)
    if value is None:
        return ()
    if isinstance(value, dict):
        return tuple(Field(readable(str(name)), shown(inner)) for name, inner in value.items())
    return (Field("", shown(value)),)


def percent(share: float) -> str:
    """A share in [0, 1]: `31.7 %`."""
    return f"{100 * share:.1f} %".replace("-", _MINUS)


def points(difference: float) -> str:
    """A difference of two shares: `+2.5`."""
    return f"{100 * difference:+.1f}".replace("-", _MINUS)


def count(number: float) -> str:
    """`1,234`; with one decimal where it is not whole."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
