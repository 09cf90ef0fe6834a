"""What a person knows before training, as typed fields; and what was not said stays `unknown`.

Every field is a choice among levels that were measured, or that the guard needs. A number is put into its level by the field's
bounds: `rows=3000` is `thousands`. Reading a description in a person's words is a program's work (`program`), or the keyword
rules' (`rules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import ValidationError

from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import Frozen

UNKNOWN = "unknown"

_NUMBER = re.compile(r"\s*([0-9][0-9_,']*(?:\.[0-9]+)?)\s*(k|m|g|b|gb|mb)?\s*", re.IGNORECASE)
_TIMES = {"k": 1e3, "m": 1e6}
"""What a unit stands for where the field has no units of its own."""


class Situation(Frozen):
    """Base of a project's situation. A field's default is `unknown`, and its type a Literal that has it.

    Example:
        class Mine(Situation):
            bounds = {"rows": {"hundreds": 1_000, "thousands": float("inf")}}
            rows: Literal["hundreds", "thousands", "unknown"] = "unknown"
    """

    bounds: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Field → level → the number below which it is that level, rising."""

    units: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Field → unit, in small letters → what it stands for; k and m are a thousand and a million elsewhere."""

    @classmethod
    def levels(cls, name: str) -> tuple[str, ...]:
        """The levels of a field, without `unknown`."""
        return tuple(level for level in get_args(cls.model_fields[name].annotation) if level != UNKNOWN)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """From levels or numbers by name: `{"rows": "3000", "memory": "16GB"}`.

        Raises:
            ProjectError: an unknown field, or a value that is neither a level nor a number of it.
        """
        values = {}
        for name, value in given.items():
            name = name.replace("-", "_")
            if name not in cls.model_fields:
                raise ProjectError(f"{name!r} is nothing that is asked here.{nearest(name, cls.model_fields)}")
            values[name] = cls._level(name, value)
        return cls(**values)

    @classmethod
    def _level(cls, name: str, value: Any) -> str:
        text = " ".join(str(value).split())
        known = (*cls.levels(name), UNKNOWN)
        for level in known:
            if text.casefold() == level.casefold():
                return level
        if (bounds := cls.bounds.get(name)) and (found := _NUMBER.fullmatch(text)):
            number = float(re.sub("[_,']", "", found[1])) * cls.units.get(name, _TIMES).get((found[2] or "").lower(), 1)
            if number > 0:
                return next((level for level, bound in bounds.items() if number < bound), list(bounds)[-1])
        also = " or a number above 0" if name in cls.bounds else ""
        raise ProjectError(f"{name} is {text[:80]!r}. Give {', '.join(known)}{also}.")

    @classmethod
    def lenient(cls, values: Mapping[str, Any]) -> Self:
        """From what a program answered: a value that is no level counts as not known."""
        kept = {}
        for name in cls.model_fields:
            try:
                kept[name] = cls._level(name, values.get(name, UNKNOWN))
            except (ProjectError, ValidationError):
                kept[name] = UNKNOWN
        return cls(**kept)

    def known(self) -> dict[str, str]:
        """The fields that are not `unknown`."""
        return {name: value for name, value in self.model_dump().items() if value != UNKNOWN}
