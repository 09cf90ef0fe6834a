"""What keywords reach: patterns that read a description without a language model.

The reference that a program has to beat, and what `advise` reads with while no program has been promoted. For each field, the first
pattern that occurs decides; where none does, the field stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from dspy_toolkit.advising.situation import Situation

LONGEST = 4_000
"""Characters of a description that are read: patterns take time that grows faster than the text."""

Patterns = Mapping[str, Mapping[str, str]]
"""Field → level → a regular expression, read without case, in order."""
Numbers = Mapping[str, str]
"""Field → a regular expression whose first group is a number, or a number and a unit, that the field's bounds sort into a level."""


def keyword_reader(
    kind: type[Situation], patterns: Patterns, numbers: Numbers | None = None
) -> Callable[[str], dict[str, str]]:
    """A function from a description to the fields of a situation."""
    compiled = {
        name: {level: re.compile(pattern, re.IGNORECASE) for level, pattern in levels.items()}
        for name, levels in patterns.items()
    }
    counted = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in (numbers or {}).items()}

    def read(text: str) -> dict[str, str]:
        found, text = kind().model_dump(), text[:LONGEST]
        for name, pattern in counted.items():
            if match := pattern.search(text):
                found[name] = kind.lenient({name: match[1].replace(" ", "")}).model_dump()[name]
        for name, levels in compiled.items():
            if found[name] == "unknown":
                found[name] = next((level for level, pattern in levels.items() if pattern.search(text)), "unknown")
        return found

    return read
