"""Whether a program's confidence is what it says: of the predictions that carry one, the score beside it.

The bins and the error are those of `dspy_toolkit.evaluation.confidence`. Not covered: intervals; calibration of the labels that were
not taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.evaluation.confidence import Bin, calibration_bins, expected_calibration_error
from dspy_toolkit.project.abstention import confidence_of
from dspy_toolkit.report.words import Field, count, percent

if TYPE_CHECKING:
    import pandas as pd


class Calibration(NamedTuple):
    """Confidence beside scores."""

    bins: tuple[Bin, ...]
    """Those that have rows, ascending."""
    error: float
    """The expected calibration error, in [0, 1]."""
    rows: int
    """Rows whose prediction carries a confidence."""
    facts: tuple[Field, ...]


def calibration(table: pd.DataFrame, abstain_below: float | None = None) -> Calibration | None:
    """Of a per-row table (`Report.rows`); None where no prediction carries a confidence.

    Args:
        abstain_below: the project's; with it the facts say how many rows would be answered, and how well.
    """
    pairs = [
        (confidence, float(value))
        for prediction, value in zip(table["prediction"], table["value"], strict=True)
        if (confidence := confidence_of(json.loads(prediction))) is not None
    ]
    return of_pairs(pairs, abstain_below) if pairs else None


def of_pairs(pairs: Sequence[tuple[float, float]], abstain_below: float | None = None) -> Calibration:
    """Of (confidence, score) of each row, both in [0, 1]; at least one."""
    bins = calibration_bins([confidence for confidence, _ in pairs], [score for _, score in pairs])
    error = expected_calibration_error(bins)
    facts = (
        Field("Expected calibration error", percent(error)),
        Field("Mean confidence", percent(_mean([confidence for confidence, _ in pairs]))),
        Field("Mean score of the same rows", percent(_mean([score for _, score in pairs]))),
        Field("Rows with a confidence", count(len(pairs))),
    )
    if abstain_below is not None:
        facts += tuple(_answered(pairs, abstain_below))
    return Calibration(bins, error, len(pairs), facts)


def _answered(pairs: Sequence[tuple[float, float]], below: float) -> Iterator[Field]:
    """What is left where the others abstain."""
    scores = [score for confidence, score in pairs if confidence >= below]
    yield Field(
        f"Answered, at a confidence of {percent(below)} or more", f"{count(len(scores))} of {count(len(pairs))}"
    )
    yield Field("Mean score of the answered rows", percent(_mean(scores)) if scores else "there are none")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
