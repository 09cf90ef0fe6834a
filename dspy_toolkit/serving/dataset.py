"""Rows of a dataset from what users said of answers.

A row is the inputs of a request with the labels that feedback gave, or, where a rating of 1 says that the answer was right, with
the answer. Of several entries about one request the last counts, and of several requests with the same inputs the last one.

What was opened stays opened: a row whose inputs are those of a row that the ledger has seen opened is left out, since it would come
back as a fresh sealed row; so is one whose inputs the project has placed already, which keeps its split and needs no second copy.

Covered: choosing and writing the rows. Not covered: splitting them, which the next optimization does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.feedback import Feedback, feedback_file, latest, read_feedback
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    from dspy_toolkit.project import Project
    from dspy_toolkit.settings import Settings


class FeedbackRows(NamedTuple):
    """What feedback gave."""

    rows: list[dict[str, Any]]
    entries: int
    """Pieces of feedback that were read."""
    unlabelled: int = 0
    """Requests that feedback neither labelled wholly nor called right."""
    known: int = 0
    """Rows that the project has already, or whose inputs were opened."""


def rows_of(settings: Settings, project: Project, program: str) -> FeedbackRows:
    """The rows that feedback on a program gives.

    Args:
        settings: the home.
        project: whose rows they are to be.
        program: the name under which it was served.

    Raises:
        DatasetError: a line of the feedback, or the file of placements, cannot be read.
        LedgerError: the ledger cannot be read.
    """
    entries = read_feedback(settings.path(), program)
    known = _known_names(settings, project)
    found: dict[bytes, dict[str, Any]] = {}
    unlabelled = seen = 0
    for entry in latest(entries):
        labels = _labels(entry, project.dataset.outputs)
        inputs = {name: entry.inputs.get(name) for name in project.dataset.inputs}
        if labels is None:
            unlabelled += 1
        elif _name(inputs, project) in known:
            seen += 1
        else:
            found[canonical_json(inputs)] = {**inputs, **labels}
    return FeedbackRows(list(found.values()), len(entries), unlabelled, seen)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, to a file that is not there yet.

    Raises:
        DatasetError: the file is there, or cannot be written.
    """
    from dspy_toolkit.durable import write_file

    if path.exists():
        raise DatasetError(f"{path} is there already. Name another file; rows are added to a dataset by hand.")
    write_file(path, b"".join(canonical_json(row) + b"\n" for row in rows), DatasetError)


def check_some(settings: Settings, program: str) -> None:
    """Refuse a program without feedback. Raises DatasetError, with those that have some."""
    from dspy_toolkit.errors import nearest

    path = feedback_file(settings.path(), program)
    if not path.exists():
        there = [each.stem for each in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise DatasetError(
            f"There is no feedback on {program!r} in {path.parent}.{nearest(program, there)} "
            "Clients send it to /v1/feedback while `dspy-toolkit serve` runs."
        )


def _labels(entry: Feedback, outputs: tuple[str, ...]) -> dict[str, Any] | None:
    """Every output of the row; None where not all are known."""
    right = entry.prediction if entry.rating == 1 else {}
    values = {name: (entry.labels or {}).get(name, right.get(name)) for name in outputs}
    return values if outputs and all(value is not None for value in values.values()) else None


def _known_names(settings: Settings, project: Project) -> frozenset[str]:
    """By which the project's placed rows and the ledger's opened ones are known."""
    from dspy_toolkit.datasets.placements import recall
    from dspy_toolkit.gate import Ledger
    from dspy_toolkit.pipeline.compare import LEDGER
    from dspy_toolkit.pipeline.prepare import placements_path
    from dspy_toolkit.pipeline.row_names import name_of_text

    placed = recall(placements_path(settings, project.name))
    return frozenset(name_of_text(each.text) for each in placed) | Ledger(settings.path(LEDGER)).opened_rows()


def _name(inputs: dict[str, Any], project: Project) -> str:
    from dspy_toolkit.datasets.neighbors import comparable
    from dspy_toolkit.datasets.table import as_text
    from dspy_toolkit.pipeline.row_names import name_of_text

    return name_of_text(comparable(as_text(inputs[name]) for name in project.dataset.inputs))
