"""What two programs answered on the same rows: where they differ, and how each scored on every class.

Read from the per-row tables of two evaluations. Rows that only one of the two has are left out.

Not covered: whether a difference is more than chance, which `dspy_toolkit.gate` says for all rows together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.report.words import Field, fields_in, percent, readable, shown

if TYPE_CHECKING:
    import pandas as pd

MOST = 25
"""Rows of each kind that are shown."""
MOST_CLASSES = 20
"""An output with more distinct values is not treated as classes, unless its type is a choice."""
ROWS_PER_CLASS = 3
"""An output of any type counts as a class from this many rows for each of its values, on average."""
_NONE = 1e-9
"""Two scores that differ by less are equal."""

FAULTS = {
    "parse_failure": "The reply could not be read.",
    "metric_error": "The metric failed.",
    "prompt_too_long": "The prompt does not fit the model.",
    "request_refused": "The model refused the request.",
    "program_error": "The program raised an error.",
}


class Answer(NamedTuple):
    """The answer of one program to a row."""

    fields: tuple[Field, ...]
    score: float
    fault: str
    """What went wrong, in words; empty for an answer that was scored."""
    feedback: str


class Case(NamedTuple):
    """A row on which the two programs score differently."""

    row: str
    """The first characters of its hash, as the tables in MLflow have it."""
    inputs: tuple[Field, ...]
    expected: tuple[Field, ...]
    before: Answer
    after: Answer


class Changes(NamedTuple):
    """Rows that scored higher, and rows that scored lower."""

    rows: int
    """Rows that both programs answered."""
    won: tuple[Case, ...]
    """Scored higher after; the greatest differences first, at most MOST."""
    won_count: int
    lost: tuple[Case, ...]
    lost_count: int


class ClassRow(NamedTuple):
    """The rows of one expected value."""

    value: str
    rows: int
    before: str
    """Rows that were right, `12 of 15 (80.0 %)`; the mean where scores are graded."""
    after: str
    gain: float
    """Mean after, less the mean before."""


class Classes(NamedTuple):
    """One output with few expected values."""

    output: str
    rows: tuple[ClassRow, ...]


class _Row(NamedTuple):
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    expected: dict[str, Any]

    @property
    def gain(self) -> float:
        difference = float(self.after["value"]) - float(self.before["value"])
        return difference if abs(difference) > _NONE else 0.0


def changes(before: pd.DataFrame, after: pd.DataFrame) -> Changes:
    """The rows that were won and lost from `before` to `after`, two tables of `evaluation.Report.rows`."""
    rows = _rows(before, after)
    won, lost = [row for row in rows if row.gain > 0], [row for row in rows if row.gain < 0]
    return Changes(len(rows), _told(won), len(won), _told(lost), len(lost))


def classes(
    before: pd.DataFrame, after: pd.DataFrame, outputs: Sequence[str], types: Mapping[str, Any]
) -> tuple[Classes, ...]:
    """Mean scores by expected value, for every output that has few of them.

    Args:
        before, after: two tables of `evaluation.Report.rows`.
        outputs: the labelled fields.
        types: field → type; a Literal, an enum or a bool says which values there are, and in which order.
    """
    rows = _rows(before, after)
    graded = any(0 < score < 1 for side in _scores(rows) for score in side)
    found = []
    for output in outputs:
        seen = Counter(_key(row.expected.get(output)) for row in rows)
        if not (values := _values(seen, types.get(output))):
            continue
        table = []
        for key in values:
            old, new = _scores([row for row in rows if _key(row.expected.get(output)) == key])
            gain = (sum(new) - sum(old)) / len(new)
            table.append(ClassRow(shown(json.loads(key)), len(new), _right(old, graded), _right(new, graded), gain))
        found.append(Classes(output, tuple(table)))
    return tuple(found)


def _rows(before: pd.DataFrame, after: pd.DataFrame) -> list[_Row]:
    """Rows that both tables have, in the order of `after`."""
    old = {str(row["_row"]): row for row in before.to_dict("records")}
    new = {str(row["_row"]): row for row in after.to_dict("records")}
    return [_Row(old[key], row, _object(row["expected"])) for key, row in new.items() if key in old]


def _scores(rows: Sequence[_Row]) -> tuple[list[float], list[float]]:
    """Before, and after."""
    return [float(row.before["value"]) for row in rows], [float(row.after["value"]) for row in rows]


def _right(scores: Sequence[float], graded: bool) -> str:
    mean = percent(sum(scores) / len(scores))
    return mean if graded else f"{sum(scores):.0f} of {len(scores)} ({mean})"


def _told(rows: Sequence[_Row]) -> tuple[Case, ...]:
    """At most MOST rows: the greatest differences; among equal ones, one of each expected answer in turn."""
    turns: Counter[tuple[float, str]] = Counter()
    ordered = []
    for place, row in enumerate(rows):
        difference = round(abs(row.gain), 6)
        kind = difference, _key(row.expected)
        ordered.append((-difference, turns[kind], place, row))
        turns[kind] += 1
    return tuple(_case(row) for *_, row in sorted(ordered, key=lambda entry: entry[:3])[:MOST])


def _case(row: _Row) -> Case:
    return Case(
        row=readable(str(row.after["_row"])[:12]),
        inputs=fields_in(str(row.after["inputs"])),
        expected=fields_in(str(row.after["expected"])),
        before=_answer(row.before),
        after=_answer(row.after),
    )


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(
        fields=fields_in(str(row["prediction"])),
        score=float(row["value"]),
        fault=FAULTS.get(str(row["status"]), ""),
        feedback=readable(str(row["feedback"] or "")),
    )


def _values(seen: Counter[str], annotation: Any) -> list[str]:
    """The classes as keys: those that a type allows and rows have, or the few that there are; else none."""
    from dspy_toolkit.datasets.checking import choices_of

    known = choices_of(annotation) if annotation is not None else None
    if known is not None:
        allowed = [_key(value) for value in known]
        ordered = [key for key in allowed if key in seen] + sorted(key for key in seen if key not in allowed)
        return ordered if len(ordered) > 1 else []
    few = 1 < len(seen) <= MOST_CLASSES and seen.total() >= ROWS_PER_CLASS * len(seen)
    plain = all(not isinstance(json.loads(key), dict | list) for key in seen)
    return [key for key, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))] if few and plain else []


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
