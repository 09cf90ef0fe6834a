"""Comparing the outputs of an example with those of an answer, one by one.

Covered: which outputs count, an output that the answer does not have, the mean, and a feedback of one sentence for each
wrong output. How one output is compared, each metric says itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from dspy_toolkit.errors import MetricError, nearest
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

RIGHT = "Right."
"""The feedback of an answer with nothing wrong."""
SHOWN = 400
"""Characters of a value that a feedback shows: it goes into the prompt of the reflection model."""
LISTED = 12
"""Words, items or fields that a feedback lists."""

Compare = Callable[[str, Any, Any], tuple[float, str]]
"""(name, expected, got) → (value in [0, 1], what is wrong; empty when nothing is)."""


def compare_fields(
    example: dspy.Example, prediction: dspy.Prediction, fields: Sequence[str], compare: Compare
) -> Score:
    """The mean of `compare` over the outputs of `example`; an output that the answer does not have counts as 0.

    Args:
        fields: the outputs that count; all of them when empty.

    Raises:
        MetricError: `example` has no output, or not one of `fields`.
    """
    expected = outputs_of(example, fields)
    values, wrong = [], []
    for name, value in expected.items():
        if name in prediction:
            part, note = compare(name, value, prediction[name])
        else:
            part, note = 0.0, missing(name, value)
        values.append(part)
        if note:
            wrong.append(note)
    return Score(value=sum(values) / len(values), feedback=" ".join(wrong) or RIGHT)


def outputs_of(example: dspy.Example, fields: Sequence[str] = ()) -> dict[str, Any]:
    """The outputs of `example` that count, by name. Raises MetricError when there is none, or not one of `fields`."""
    labels: dict[str, Any] = dict(example.labels().items())
    if not labels:
        raise MetricError("the example has no output to compare with.")
    for name in fields:
        if name not in labels:
            raise MetricError(f"the example has no output {name!r}.{nearest(name, labels)}")
    return {name: labels[name] for name in fields} if fields else labels


def missing(name: str, expected: Any) -> str:
    """The feedback for an output that is not there."""
    return f"{name}: expected {shown(expected)}, got no answer."


def unlike(name: str, expected: Any, got: Any, why: str = "") -> str:
    """The feedback for an output that is not what was expected."""
    return f"{name}: expected {shown(expected)}, got {shown(got)}{f' ({why})' if why else ''}."


def plain(value: Any) -> Any:
    """An enum's member as its value; anything else unchanged."""
    return value.value if isinstance(value, Enum) else value


def comparable(value: Any) -> Any:
    """What two values are compared by: texts without case and outer spaces, enum members by their value."""
    value = plain(value)
    return value.strip().casefold() if isinstance(value, str) else value


def as_json(value: Any) -> Any:
    """A value in JSON's types: models, dataclasses and mappings as dictionaries, sets as sorted lists, enum members by
    their value, anything strange as its text. Equal values give equal JSON.
    """
    value = plain(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, BaseModel):
        # Not `model_dump`, whose sets have no fixed order.
        return as_json({name: getattr(value, name) for name in type(value).model_fields})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(plain(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((as_json(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return str(value)


def shown(value: Any) -> str:
    """A value as Python writes it, cut at SHOWN characters."""
    text = repr(plain(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def listed(items: Sequence[str], between: str = ", ") -> str:
    """Some items, with a count of those that are left out."""
    more = len(items) - LISTED
    return between.join(items[:LISTED]) + (f" and {more} more" if more > 0 else "")
