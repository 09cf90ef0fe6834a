"""Whether a program's confidence is what it says: of the predictions that carry one, the score beside it.

Rows are put into ten bins of equal width by their `confidence`. The expected calibration error is the mean over the rows of the
distance between their bin's mean confidence and its mean score (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
probabilities using Bayesian binning", AAAI 2015). It falls with the number of rows even for a program that is calibrated
perfectly: with some hundred rows a few points are noise.

Not covered: intervals; calibration of the labels that were not taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

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


def calibration(table: pd.DataFrame) -> Calibration | None:
    """Of a per-row table (`Report.rows`); None where no prediction carries a confidence."""
    pairs = [
        (confidence, float(value))
        for prediction, value in zip(table["prediction"], table["value"], strict=True)
        if (confidence := _confidence(prediction)) is not None
    ]
    return of_pairs(pairs) if pairs else None


def of_pairs(pairs: Sequence[tuple[float, float]]) -> Calibration:
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
    return Calibration(bins, error, len(pairs), facts)


def _confidence(prediction: str) -> float | None:
    """What a prediction, as JSON, says of itself; None where it says nothing, or no number in [0, 1]."""
    given = json.loads(prediction)
    said = given.get("confidence") if isinstance(given, dict) else None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= 1:
        return None
    return float(said)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
