"""The types of a signature's text form, from a closed list: nothing is imported, looked up or evaluated by its name.

Covered: Python's own types, those of `typing` that hold values, `datetime`, `decimal.Decimal`, DSPy's own
(`dspy.Image`, …), `X | Y`, and brackets around any of them. Not covered: types of a user's own.

DSPy's reader imports a module for each name that it does not know, and hands quoted types to pydantic, which evaluates
them as Python.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import typing
from difflib import get_close_matches
from typing import Any

from dspy_toolkit.errors import nearest

_BUILTIN = (str, int, float, bool, list, dict, tuple, set, frozenset, bytes, complex)
_TYPING = (
    *("Any", "Literal", "Optional", "Union", "Annotated", "List", "Dict", "Tuple", "Set", "FrozenSet"),
    *("Sequence", "Mapping", "Iterable", "Collection"),
)
_DSPY = ("Audio", "Code", "File", "History", "Image", "Reasoning", "Tool", "ToolCalls")
_TYPES: dict[str, Any] = {
    **{each.__name__: each for each in _BUILTIN},
    **{name: getattr(typing, name) for name in _TYPING},
    **{f"typing.{name}": getattr(typing, name) for name in _TYPING},
    **{f"datetime.{each}": getattr(datetime, each) for each in ("date", "time", "datetime", "timedelta")},
    "decimal.Decimal": decimal.Decimal,
}


def read_type(node: ast.expr) -> Any:
    """The type that `node` writes.

    Raises:
        ValueError: it is none of those covered; with the nearest name.
        TypeError: a type's brackets hold what it does not take.
    """
    if isinstance(node, ast.Name | ast.Attribute):
        return _named(ast.unparse(node))
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[read_type(node.left), read_type(node.right)]  # noqa: UP007  (None has no |)
    if not isinstance(node, ast.Subscript):
        raise ValueError(f"{ast.unparse(node)} is no type")
    outer, inner = read_type(node.value), node.slice
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if outer is typing.Literal:
        read = [_value(part) for part in parts]
    elif outer is typing.Annotated:
        read = [read_type(parts[0]), *(_value(part) for part in parts[1:])]
    else:
        # A quoted type stays out: pydantic would evaluate it.
        dots = isinstance(parts[-1], ast.Constant) and parts[-1].value is ...
        read = [*(read_type(part) for part in parts[: len(parts) - dots]), *[...] * dots]
    return outer[read[0] if len(read) == 1 else tuple(read)]


def _named(name: str) -> Any:
    if name in _TYPES:
        return _TYPES[name]
    if name.removeprefix("dspy.") in _DSPY and name.startswith("dspy."):
        import dspy

        return getattr(dspy, name.removeprefix("dspy."))
    known = [*_TYPES, *(f"dspy.{each}" for each in _DSPY)]
    hint = nearest(name, known) if get_close_matches(name, known) else ""
    raise ValueError(f"there is no type {name}.{hint} The words of a Literal need quotes")


def _value(node: ast.expr) -> Any:
    """A constant: what a Literal lists."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        # Its words without quotes, most often.
        return _named(ast.unparse(node))
