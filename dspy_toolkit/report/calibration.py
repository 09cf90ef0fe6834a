"""Whether a program's confidence is what it says: of the predictions that carry one, the score beside it.

Rows are put into ten bins of equal width by their `confidence`. The expected calibration error is the mean over the rows of the
distance between their bin's mean confidence and its mean score (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
probabilities using Bayesian binning", AAAI 2015). It falls with the number of rows even for a program that is calibrated
perfectly: with some hundred rows a few points are noise.

Not covered: intervals; calibration of the labels that were not taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.project.abstention import confidence_of
from dspy_toolkit.report.words import Field, count, percent

if TYPE_CHECKING:
    import pandas as pd

BINS = 10


class Bin(NamedTuple):
    """Rows whose confidence is alike."""

    low: float
    """From this confidence on."""
    high: float
    """To this one; of the last bin it belongs to it."""
    rows: int
    confidence: float
    """Their mean confidence."""
    score: float
    """Their mean score."""


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
    filled: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        filled.setdefault(min(int(pair[0] * BINS), BINS - 1), []).append(pair)
    bins = tuple(
        Bin(number / BINS, (number + 1) / BINS, len(own), _mean([c for c, _ in own]), _mean([s for _, s in own]))
        for number, own in sorted(filled.items())
    )
    error = sum(each.rows * abs(each.confidence - each.score) for each in bins) / len(pairs)
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
