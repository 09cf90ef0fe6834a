"""Writing configurations as text that every loader reads alike: numbers in decimals, texts quoted.

PyYAML reads `1e-4` as a text and mlx_lm's loader as a number; `0.0001` is a number for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


def plain_number(value: float) -> str:
    """A number without an exponent: `0.0001`, `2.0`, `40`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"


def _scalar(value: Any) -> str:
    if isinstance(value, int | float):
        return plain_number(value)
    if value is None:
        return "null"
    return json.dumps(str(value), ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return _scalar(value)
    return f"[{', '.join(map(_scalar, value))}]"


def yaml_text(values: Mapping[str, Any], comment: str = "") -> str:
    """YAML of numbers, texts, lists of these, and mappings of these one level down."""
    lines = [f"# {line}" for line in comment.splitlines()]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines.extend(f"  {name}: {_value(each)}" for name, each in value.items())
        else:
            lines.append(f"{key}: {_value(value)}")
    return "\n".join(lines) + "\n"


def toml_text(values: Mapping[str, Any], comment: str = "") -> str:
    """Flat TOML of numbers, truths and texts."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines.extend(f"{key} = {_value(value)}" for key, value in values.items())
    return "\n".join(lines) + "\n"


def arguments_text(program: str, values: Mapping[str, Any]) -> str:
    """A command line, one argument a line; an argument whose value is True stands alone, one of None is left out."""
    import shlex

    parts = [program]
    for name, value in values.items():
        if value is True:
            parts.append(f"--{name}")
        elif value is not None and value is not False:
            written = plain_number(value) if isinstance(value, int | float) else shlex.quote(str(value))
            parts.append(f"--{name} {written}")
    return " \\\n  ".join(parts) + "\n"
