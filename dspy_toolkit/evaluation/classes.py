"""How a program fares class by class, where an output is a choice: a Literal, an enum or a bool.

Computed from the per-row table of an evaluation, whatever its metric was. An answer counts for a class when it is equal
to it as in `exact_match` (without case and outer spaces); one that is none of the classes, or is missing, is no answer.

The intervals resample whole groups of near-duplicates where rows have such, as those of a report do.

Not covered: outputs of other types, several labels in one output (see the metric `set_overlap`), and whether one
program is better than another (`gate.decide`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets.checking import choices_of
from dspy_toolkit.evaluation.estimates import Estimate
from dspy_toolkit.gate.intervals import mean_interval
from dspy_toolkit.metrics.fields import comparable
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_NO_ANSWER = object()
"""What stands for an answer that is not there; equal to no class."""
RESAMPLES = 4_000
"""Of the bootstrap: an end of a 95 % interval then varies by about a twentieth of the interval's width."""


class ClassScore(Frozen):
    """One class."""

    value: str | int | float | bool | None
    support: int
    """Rows that are of this class."""
    predicted: int
    """Rows that were answered with it."""
    precision: Estimate | None
    """The share of the answers with this class that were right; None where there were none."""
    recall: Estimate | None
    """The share of the rows of this class that were answered rightly; None where there were none."""
    f1: float
    """Harmonic mean of the two: 2 right / (support + predicted)."""


class ClassReport(Frozen):
    """One output that is a choice."""

    output: str
    n: int
    """Rows."""
    accuracy: Estimate
    macro_f1: Estimate
    """The mean of `f1` over `classes`, each counting the same, however many rows it has."""
    classes: tuple[ClassScore, ...]
    """In the order of the type; those that no row has and no answer gave are left out."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows by (class, answer), in the order of `classes`; the last column counts rows without an answer among them."""


def class_reports(table: pd.DataFrame, outputs: Iterable[str], types: Mapping[str, Any]) -> tuple[ClassReport, ...]:
    """A report for each of `outputs` whose type is a choice and that at least one row has.

    Args:
        table: of `Report.rows`.
        outputs: labelled fields.
        types: field → annotation.
    """
    choices = {output: choices_of(types[output]) for output in outputs if output in types}
    found = (_report(table, output, values) for output, values in choices.items() if values is not None)
    return tuple(report for report in found if report is not None)


def _report(table: pd.DataFrame, output: str, choices: Sequence[Any]) -> ClassReport | None:
    import numpy as np

    expected, answered = (_values(table[column], output) for column in ("expected", "prediction"))
    keys = {_key(value): value for value in choices}
    if _key(None) in map(_key, expected):  # of an optional output, nothing is an answer too
        keys.setdefault(_key(None), None)
    place = {key: number for number, key in enumerate(keys)}
    rows = [number for number, value in enumerate(expected) if _key(value) in place]
    if not rows:
        return None
    true = np.array([place[_key(expected[row])] for row in rows])
    said = np.array([place.get(_key(answered[row]), len(place)) for row in rows])
    groups = np.asarray(table["_group"].astype(str))[rows]

    seen = [number for number in range(len(place)) if (true == number).any() or (said == number).any()]
    values = list(keys.values())
    confusion = np.zeros((len(place), len(place) + 1), dtype=int)
    np.add.at(confusion, (true, said), 1)
    macro = _f1(np.bincount(true, minlength=len(place))[seen], _predicted(confusion)[seen], np.diag(confusion)[seen])
    return ClassReport(
        output=output,
        n=len(rows),
        accuracy=_share(true == said, groups),
        macro_f1=_macro_f1(true, said, groups, float(macro.mean()), len(place)),
        classes=tuple(
            ClassScore(
                value=values[number],
                support=int(confusion[number].sum()),
                predicted=int(confusion[:, number].sum()),
                precision=_part(true == number, said == number, groups),
                recall=_part(said == number, true == number, groups),
                f1=float(macro[position]),
            )
            for position, number in enumerate(seen)
        ),
        confusion=tuple(tuple(int(confusion[row, column]) for column in (*seen, len(place))) for row in seen),
    )


def _values(column: Iterable[Any], output: str) -> list[Any]:
    """The value of `output` in each JSON text of a column."""
    read = (json.loads(text) for text in column)
    return [found.get(output, _NO_ANSWER) if isinstance(found, dict) else _NO_ANSWER for found in read]


def _key(value: Any) -> Any:
    """What classes are told apart by. With the type, since True and 1 are equal and are not the same class."""
    if value is _NO_ANSWER or isinstance(value, list | dict):
        return _NO_ANSWER
    value = comparable(value)
    return type(value).__name__, value


def _predicted(confusion: NDArray[np.int_]) -> NDArray[np.int_]:
    return confusion[:, :-1].sum(axis=0)


def _f1(support: Any, predicted: Any, right: Any) -> Floats:
    import numpy as np

    return np.asarray(2.0 * right / np.maximum(support + predicted, 1e-12))


def _part(right: NDArray[np.bool_], among: NDArray[np.bool_], groups: NDArray[Any]) -> Estimate | None:
    """The share that is `right` of the rows `among`."""
    return _share(right[among], groups[among]) if among.any() else None


def _share(right: NDArray[np.bool_], groups: NDArray[Any]) -> Estimate:
    low, high = mean_interval(right.astype(float), groups)
    return Estimate(value=float(right.mean()), low=low, high=high)


def _macro_f1(
    true: NDArray[np.int_], said: NDArray[np.int_], groups: NDArray[Any], value: float, size: int
) -> Estimate:
    """Macro-F1 with the percentile interval of a bootstrap over groups.

    Each end is the widest of three. The percentile itself. The percentile less twice the bootstrap's bias (Efron 1987,
    JASA 82:171-185, for a normal distribution): with few rows a class, F1 of a resample is on average below that of the
    sample. With five rows a class that is not enough: of 20 such classes, 9 in 10 intervals hold the truth. And the percentile with one more group of the mean size, in which all is wrong (for the lower end) or all
    right (for the upper one), after Agresti and Min 2005, as in `gate.intervals.bootstrap`: a sample without a fault has
    nothing in it to resample.
    """
    import numpy as np

    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    # Of each group, all that the F1 of a resample is made of: rows of a class, answers with it, and both.
    support, predicted, hits = (np.zeros((count, size + 1)) for _ in range(3))
    np.add.at(support, (group, true), 1)
    np.add.at(predicted, (group, said), 1)
    np.add.at(hits, (group, true), true == said)
    parts = np.stack([support, predicted, hits], axis=1)[:, :, :size]
    # Groups that are alike are drawn together, so that the draws do not grow with the rows.
    kinds, often = np.unique(parts.reshape(count, -1), axis=0, return_counts=True)
    mean = parts.sum(axis=0) / count
    wrong, right = np.zeros_like(mean), np.repeat(mean[:1], 3, axis=0)
    wrong[0] = mean[0]
    ends = []
    for extra in (None, wrong, right):
        table, counts = kinds, often
        if extra is not None:
            table, counts = np.vstack([kinds, extra.reshape(1, -1)]), np.append(often, 1)
        draws = _resampled(table, counts, size)
        ends.append(np.quantile(draws, (0.025, 0.975)))
        if extra is None:
            ends.append(np.clip(ends[0] + 2 * (value - draws.mean()), 0, 1))
    return Estimate(value=value, low=float(min(end[0] for end in ends)), high=float(max(end[1] for end in ends)))


def _resampled(kinds: Floats, often: NDArray[np.int_], size: int) -> Floats:
    """Macro-F1 of RESAMPLES draws of as many groups as there are, over the classes that each draw has."""
    import numpy as np

    drawn = np.random.default_rng(0).multinomial(often.sum(), often / often.sum(), size=RESAMPLES)
    support, predicted, right = np.moveaxis((drawn @ kinds).reshape(RESAMPLES, 3, size), 1, 0)
    there = support + predicted > 0
    return np.where(there, _f1(support, predicted, right), 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
