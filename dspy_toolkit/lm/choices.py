"""Outputs that are a choice: the texts that a model may write for one, and the value that each stands for."""

from __future__ import annotations

import enum
from typing import Any, Literal, get_args, get_origin


def choices_of(annotation: Any) -> tuple[tuple[str, Any], ...] | None:
    """(text, value) of each label of a Literal, an enum or a bool, in order; None for any other type."""
    if annotation is bool:
        return (("True", True), ("False", False))
    if get_origin(annotation) is Literal:
        return tuple((str(value), value) for value in get_args(annotation))
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        # Of a value that is no text, DSPy reads the name.
        return tuple((m.value if isinstance(m.value, str) else m.name, m) for m in members)
    return None
