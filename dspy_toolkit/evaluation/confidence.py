"""Confidence beside scores: the expected calibration error, and the bins that it is made of.

Rows are put into ten bins of equal width by their confidence. The error is the mean over the rows of the distance between their
bin's mean confidence and its mean score (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
binning", AAAI 2015). It falls with the number of rows even for a program that is calibrated perfectly: with some hundred rows a few
points are noise.

Not covered: intervals; probabilities of the labels that were not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


def calibration_bins(confidences: Sequence[float], scores: Sequence[float]) -> tuple[Bin, ...]:
    """The bins that have rows, ascending.

    Args:
        confidences: in [0, 1].
        scores: in [0, 1], one a confidence.
    """
    import numpy as np

    sure, right = np.asarray(confidences, dtype=float), np.asarray(scores, dtype=float)
    numbers = np.minimum((sure * BINS).astype(int), BINS - 1)
    rows = np.bincount(numbers, minlength=BINS)
    sums = np.bincount(numbers, sure, BINS), np.bincount(numbers, right, BINS)
    return tuple(
        Bin(at / BINS, (at + 1) / BINS, int(rows[at]), *(float(each[at] / rows[at]) for each in sums))
        for at in np.flatnonzero(rows).tolist()
    )


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error of the rows in `bins`, in [0, 1]; at least one has rows."""
    return sum(each.rows * abs(each.confidence - each.score) for each in bins) / sum(each.rows for each in bins)
