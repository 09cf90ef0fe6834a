"""Explanations whose numbers are true: each number in a text has to be one of the facts.

Covered: finding the numbers of a text, in the forms that people write; comparing them with facts. Not covered: whether the words
around a number are right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,']*(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w]*\d)")


def numbers_in(text: str) -> list[float]:
    """The numbers of a text, in order; `1,000` and `1e-3` are read, digits inside a word (`4B` aside) are not."""
    return [float(re.sub("[,']", "", found[0]).replace("−", "-")) for found in _NUMBER.finditer(text)]


def unsupported_numbers(text: str, facts: Iterable[float | str], tolerance: float = 0.005) -> list[float]:
    """The numbers of `text` that no fact has, within half a percent or rounding to the digits written.

    Args:
        text: an explanation.
        facts: numbers, or texts that hold numbers.
    """
    known: list[float] = []
    for fact in facts:
        known.extend(numbers_in(fact) if isinstance(fact, str) else [float(fact)])
    return [
        number
        for number in numbers_in(text)
        if not any(
            abs(abs(number) - abs(fact)) <= tolerance * abs(fact) + 1e-12 or _rounds(number, fact) for fact in known
        )
    ]


def _rounds(number: float, fact: float) -> bool:
    digits = len(f"{number:.6f}".rstrip("0").partition(".")[2])
    return round(abs(fact), digits) == round(abs(number), digits) and (digits > 0 or abs(fact) >= 1)
