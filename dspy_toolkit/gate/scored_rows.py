"""What a program scored on each row, and the rows of two programs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dspy_toolkit.errors import DatasetError

IDS = ("id", "row", "_row", "row_id")
SCORES = ("score", "value")
GROUPS = ("group", "_group")
TOKENS = ("tokens", "prompt_tokens")
SHOWN = 3
"""Rows that a message names."""


class ScoredRow(NamedTuple):
    """What one program scored on one row."""

    id: str
    repeats: tuple[float, ...]
    """Scores in [0, 1]; one where the row ran once."""
    group: str | None = None
    tokens: float | None = None
    """Prompt tokens of all repeats."""


class Paired(NamedTuple):
    """Two programs on the same rows, in one order; what `decide` takes."""

    ids: list[str]
    old: list[tuple[float, ...]]
    new: list[tuple[float, ...]]
    groups: list[str] | None
    """None where no row has one."""
    old_tokens: float | None
    """None where a row's were not counted."""
    new_tokens: float | None


def rows_of(records: Sequence[Any], where: str, column: str = "") -> list[ScoredRow]:
    """Rows from records with the columns that the module names.

    Raises:
        DatasetError: a record is no object, or has no id or no score in [0, 1].
    """
    rows = []
    for number, record in enumerate(records, start=1):
        at = f"{where}, row {number}"
        if not isinstance(record, Mapping):
            raise DatasetError(f"{at} is {record!r}, not an object. Give an id and a score for each row.")
        name, score = _first(record, IDS, at), _first(record, (column,) if column else SCORES, at)
        repeats = score if isinstance(score, list | tuple) else (score,)
        group = next((record[key] for key in GROUPS if record.get(key) not in (None, "")), None)
        tokens = next((record[key] for key in TOKENS if record.get(key) not in (None, "")), None)
        rows.append(
            ScoredRow(
                str(name),
                tuple(score_of(value, at) for value in repeats),
                None if group is None else str(group),
                None if tokens is None else _number(tokens, at, "tokens"),
            )
        )
        if not repeats:
            raise DatasetError(f"{at} has no score: an empty list. Score every row.")
    return rows


def score_of(value: Any, at: str) -> float:
    """A score in [0, 1]: a number, a number in text, or true and false. Raises DatasetError for anything else."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    score = _number(value, at, "score")
    if not 0 <= score <= 1:
        raise DatasetError(f"{at}: the score {value!r} lies outside [0, 1]. Scale the scores.")
    return score


def pair(old: Sequence[ScoredRow], new: Sequence[ScoredRow]) -> Paired:
    """Put two programs' rows side by side, in the order of their ids.

    Raises:
        DatasetError: a row is in one of them only, or in other groups.
    """
    before, after = ({row.id: row for row in rows} for rows in (old, new))
    for name, others, there in (("old", after, before), ("new", before, after)):
        if lost := sorted(set(there) - set(others)):
            shown = ", ".join(repr(row[:40]) for row in lost[:SHOWN])
            raise DatasetError(
                f"{len(lost)} of {len(there)} rows are in the {name} file only: {shown}"
                f"{', …' if len(lost) > SHOWN else ''}. Run both programs on the same rows."
            )
    ids = sorted(before)
    groups: list[str] = []
    for row in ids:
        found = {each for each in (before[row].group, after[row].group) if each is not None}
        if len(found) > 1:
            raise DatasetError(f"Row {row[:40]!r} is in the groups {' and '.join(sorted(found))}. Give it one.")
        groups.append(found.pop() if found else f"row {row}")
    grouped = any(row.group is not None for row in (*old, *new))
    return Paired(
        ids,
        [before[row].repeats for row in ids],
        [after[row].repeats for row in ids],
        groups if grouped else None,
        _total(old),
        _total(new),
    )


def _total(rows: Sequence[ScoredRow]) -> float | None:
    counts = [row.tokens for row in rows if row.tokens is not None]
    return sum(counts) if len(counts) == len(rows) else None


def _first(record: Mapping[str, Any], names: Sequence[str], at: str) -> Any:
    for name in names:
        if record.get(name) not in (None, ""):
            return record[name]
    columns = ", ".join(map(str, record)) or "none"
    raise DatasetError(
        f"{at} has no {' or '.join(names)}; its columns are {columns}. Name them so, or pass --score COLUMN."
    )


def _number(value: Any, at: str, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DatasetError(f"{at}: the {what} {value!r} is not a number. Correct the row.") from None
