"""Metrics that compare sets and JSON with the outputs of an example.

Each takes all outputs of the example, or those that `fields` names, and says of every wrong one what is
missing, superfluous or different.

Not covered: items that are similar without being equal, lists whose order does not matter inside JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from dspy_toolkit.metrics.fields import as_json, comparable, compare_fields, listed, plain, shown, unlike
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.S)
_BULLET = re.compile(r"^(?:[-*\u2022]|\d+[.)])\s+")
Where = tuple[str | int, ...]


def set_overlap(
    example: dspy.Example,
    prediction: dspy.Prediction,
    *,
    fields: tuple[str, ...] = (),
    separators: Annotated[str, Field(min_length=1)] = ",;\n",
) -> Score:
    """How many items answer and expected set share, of all items of both (Jaccard): the mean over the outputs.

    A list, tuple or set is the set of its items, a mapping that of its pairs, None the empty one, another value that of
    itself. A text is split; bullets and numbers before its parts are dropped, and a text that is a JSON list is read as
    one. Items are compared as texts, without case and outer spaces. Two empty sets are equal.

    Args:
        fields: the outputs that count; all of them when empty.
        separators: the characters that a text is split at.

    Raises:
        MetricError: `example` has no output, or not one of `fields`.
    """

    def compare(name: str, expected: Any, got: Any) -> tuple[float, str]:
        wanted, came = _items(expected, separators), _items(got, separators)
        lost = [wanted[key] for key in wanted if key not in came]
        extra = [came[key] for key in came if key not in wanted]
        if not lost and not extra:
            return 1.0, ""
        parts = [f"missing {listed(lost)}"] if lost else []
        if extra:
            parts.append(f"superfluous {listed(extra)}")
        return len(wanted.keys() & came.keys()) / len(wanted.keys() | came.keys()), f"{name}: {'; '.join(parts)}."

    return compare_fields(example, prediction, fields, compare)


def json_fields(
    example: dspy.Example,
    prediction: dspy.Prediction,
    *,
    fields: tuple[str, ...] = (),
    allow_extra: bool = False,
) -> Score:
    """How many leaves of the expected JSON the answer has, of all leaves of both: the mean over the outputs.

    A leaf is a value at a path, such as `items.0.price`; an empty list or object is a leaf too. Models, dataclasses and
    dictionaries are JSON, and so is a text that holds an object or a list, also within ``` fences. Strings are compared
    without case and outer spaces, lists by position, numbers as numbers (1 is 1.0, and is neither "1" nor true).

    Args:
        fields: the outputs that count; all of them when empty.
        allow_extra: whether leaves that were not expected are ignored, instead of counting against the answer.

    Raises:
        MetricError: `example` has no output, or not one of `fields`.
    """

    def compare(name: str, expected: Any, got: Any) -> tuple[float, str]:
        wanted, came = _read(expected), _read(got)
        if isinstance(wanted, dict | list) and isinstance(came, str):
            return 0.0, unlike(name, expected, got, f"no JSON: {_why(came)}")
        left, right = dict(_leaves(wanted)), dict(_leaves(came))
        extra = [] if allow_extra else [path for path in right if path not in left]
        wrong = [path for path in left if path not in right or not _same(left[path], right[path])]
        if not wrong and not extra:
            return 1.0, ""
        value = (len(left) - len(wrong)) / (len(left) + len(extra))
        notes = [
            f"{_dotted(name, path)}: expected {shown(left[path])}, "
            + (f"got {shown(right[path])}" if path in right else "missing")
            for path in wrong
        ]
        notes += [f"{_dotted(name, path)}: superfluous {shown(right[path])}" for path in extra]
        return value, f"{listed(notes, '; ')}."

    return compare_fields(example, prediction, fields, compare)


def _items(value: Any, separators: str) -> dict[str, str]:
    """The key that an item is compared by → how it is shown."""
    value = plain(value)
    if isinstance(value, str):
        read = _parse(value)
        value = read if isinstance(read, list) else _split(value, separators)
    elif isinstance(value, BaseModel):
        value = as_json(value)
    if isinstance(value, Mapping):
        value = [f"{plain(key)}: {_item(item)}" for key, item in value.items()]
    elif value is None:
        value = []
    elif not isinstance(value, list | tuple | set | frozenset):
        value = [value]
    items = {comparable(text): repr(text) for text in map(_item, value)}
    items.pop("", None)
    return dict(sorted(items.items()))


def _split(text: str, separators: str) -> list[str]:
    return [_BULLET.sub("", part.strip()) for part in re.split(f"[{re.escape(separators)}]", text)]


def _item(value: Any) -> str:
    value = as_json(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _read(value: Any) -> Any:
    """JSON of a value; a text that holds no object or list stays a text."""
    value = as_json(value)
    if isinstance(value, str) and isinstance(read := _parse(value), dict | list):
        return read
    return value


def _parse(text: str) -> Any:
    """The JSON in a text, fenced or bare; None where there is none."""
    try:
        return json.loads(_bare(text))
    except (ValueError, RecursionError):
        return None


def _bare(text: str) -> str:
    fenced = _FENCE.search(text)
    return (fenced[1] if fenced else text).strip()


def _why(text: str) -> str:
    try:
        json.loads(_bare(text))
    except json.JSONDecodeError as error:
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return "neither an object nor a list"


def _leaves(value: Any, path: Where = ()) -> Iterator[tuple[Where, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    # NaN, which is equal to nothing, is the same as itself.
    return comparable(left) == comparable(right) or (left != left and right != right)


def _dotted(name: str, path: Where) -> str:
    return ".".join([name, *map(str, path)])
