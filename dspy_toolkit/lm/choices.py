"""The choices that an output's annotation leaves: what the model writes for each, and the value that it stands for.

Covered: bool, Literal, Enum, and unions of these with each other and with None (`Optional`). Not covered: lists of choices,
numbers in a range, models, and choices that DSPy would not read back as what they stand for (spaces at an end, line
breaks, `1` beside `"1"`).
"""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from dspy.adapters.chat_adapter import field_header_pattern
from dspy.adapters.utils import parse_value
from pydantic import TypeAdapter


def choices_of(annotation: Any) -> tuple[tuple[str, Any], ...] | None:
    """(text as the model writes it, value) of each choice, in the order of the annotation; None where it is no choice.

    Bare choices are written as `bare` says, those of a union as JSON (`"billing"`, `true`, `null`): so DSPy reads them, and
    so `grammar.value_rule` has them written. No text is empty and none comes twice.
    """
    written = _as_json(annotation) if is_union(annotation) else bare(annotation)
    pairs = None if written is None else readable(annotation, written)
    return pairs if pairs and all(text for text, _ in pairs) else None


def bare(annotation: Any) -> list[tuple[str, Any]] | None:
    """(text, value) of the choices of a bool, a Literal or an Enum: the values as text, of an Enum whose values are no text
    the names; None of anything else.
    """
    if annotation is bool:
        return [("True", True), ("False", False)]
    if get_origin(annotation) is Literal:
        return [(str(value), value) for value in get_args(annotation)]
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        # Of a value that is no text, DSPy reads the name.
        return [(m.value if isinstance(m.value, str) else m.name, m) for m in members]
    return None


def _as_json(annotation: Any) -> list[tuple[str, Any]] | None:
    """(JSON, value) of the choices of a union of choices and None; None of any other."""
    values: list[Any] = []
    for part in get_args(annotation):
        if (written := [("null", None)] if part is type(None) else bare(part)) is None:
            return None
        values += [value for _, value in written]
    dump = TypeAdapter(annotation).dump_python
    try:
        return [(json.dumps(dump(value, mode="json"), ensure_ascii=False), value) for value in values]
    except ValueError:  # a value that JSON does not know
        return None


def is_union(annotation: Any) -> bool:
    """Whether it is a union of types, in either notation."""
    return get_origin(annotation) in (Union, types.UnionType)


def readable(annotation: Any, written: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...] | None:
    """These (text, value) pairs, or None where there are none or a text would not be parsed into the value that it stands for."""
    # By type as well: `1` and a member of an IntEnum are equal.
    pairs = tuple({(text, type(value), value): (text, value) for text, value in written}.values())
    for text, value in pairs:
        if text != text.strip() or len(text.splitlines()) > 1 or field_header_pattern.match(text):
            return None
        try:
            parsed = parse_value(text, annotation)
        except ValueError:
            return None
        if parsed != value or type(parsed) is not type(value):
            return None
    return pairs or None
