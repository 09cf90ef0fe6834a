"""Outputs that are a choice, as the page shows them: precision and recall class by class, and what is taken for what.

The tables are the candidate's; the line above them has the champion's accuracy and macro-F1 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dspy_toolkit.evaluation import ClassReport, Estimate
from dspy_toolkit.report.words import Field, count, percent, readable, shown

MOST_CLASSES = 20
"""With more classes the confusion table is a list of the most frequent confusions."""
CONFUSIONS = 20
"""Confusions in that list."""
SHADES = 5
"""Steps of colour, by the share of the class's rows."""
NO_ANSWER = "no answer"


class ClassLine(NamedTuple):
    """One class."""

    value: str
    rows: str
    precision: str
    recall: str
    f1: str


class Cell(NamedTuple):
    """Rows of one class with one answer."""

    rows: int
    shade: str
    """The style: `right` or `wrong` with a step from 1 to SHADES; empty for no rows."""


class Confusion(NamedTuple):
    """Rows of one class, by what they were answered with."""

    value: str
    cells: tuple[Cell, ...]


class Confused(NamedTuple):
    """A frequent confusion."""

    value: str
    answer: str
    rows: int
    share: str
    """Of the class's rows."""


class ClassTables(NamedTuple):
    """One output that is a choice."""

    output: str
    facts: tuple[Field, ...]
    lines: tuple[ClassLine, ...]
    answers: tuple[str, ...]
    """The columns of `confusion`; the last one is no answer."""
    confusion: tuple[Confusion, ...]
    """Empty where there are more than MOST_CLASSES classes."""
    confused: tuple[Confused, ...]
    """Only where there are."""


def class_tables(before: Sequence[ClassReport], after: Sequence[ClassReport]) -> tuple[ClassTables, ...]:
    """What the page shows of each output, from the reports of the champion and of the candidate on the same rows."""
    earlier = {report.output: report for report in before}
    return tuple(_tables(earlier.get(report.output), report) for report in after)


def _tables(before: ClassReport | None, after: ClassReport) -> ClassTables:
    facts = []
    for name, of in (("Accuracy", "accuracy"), ("Macro-F1", "macro_f1")):
        told = f"candidate {_interval(getattr(after, of))}"
        if before is not None:
            told = f"champion {_interval(getattr(before, of))}, {told}"
        facts.append(Field(name, told))
    names = tuple(shown(one.value) for one in after.classes)
    lines = tuple(
        ClassLine(name, count(one.support), _interval(one.precision), _interval(one.recall), percent(one.f1))
        for name, one in zip(names, after.classes, strict=True)
    )
    few = len(names) <= MOST_CLASSES
    return ClassTables(
        output=readable(after.output),
        facts=tuple(facts),
        lines=lines,
        answers=(*names, NO_ANSWER),
        confusion=tuple(
            Confusion(name, tuple(_cell(rows, sum(row), place == column) for column, rows in enumerate(row)))
            for place, (name, row) in enumerate(zip(names, after.confusion, strict=True))
        )
        if few
        else (),
        confused=() if few else _most(names, after),
    )


def _cell(rows: int, support: int, right: bool) -> Cell:
    if not rows:
        return Cell(0, "")
    step = max(1, round(SHADES * rows / support))
    return Cell(rows, f"{'right' if right else 'wrong'} s{step}")


def _most(names: Sequence[str], report: ClassReport) -> tuple[Confused, ...]:
    answers = (*names, NO_ANSWER)
    found = [
        Confused(names[place], answers[column], rows, percent(rows / sum(row)))
        for place, row in enumerate(report.confusion)
        for column, rows in enumerate(row)
        if rows and column != place
    ]
    return tuple(sorted(found, key=lambda one: -one.rows)[:CONFUSIONS])


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{percent(estimate.value)} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"
