"""Is a program as often right as it says?

The expected calibration error (`dspy_toolkit.evaluation.confidence`, as on a run's page) and the Brier score. A perfectly calibrated
program has an error above 0 by chance alone; `by_chance` is how large it would be on as many rows.

Not covered: probabilities of each label; only the answer that was given has a confidence here.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspy_toolkit.evaluation.confidence import calibration_bins, expected_calibration_error
from dspy_toolkit.store import Frozen

FEWEST = 50
DRAWS = 200


class Calibration(Frozen):
    """Confidence against right answers."""

    n: int
    error: float
    """Expected calibration error, in [0, 1]."""
    by_chance: float
    """The 95 % quantile of that error for a calibrated program with these confidences."""
    brier: float
    """Mean squared difference of confidence and right (1) or wrong (0)."""
    confidence: float
    """The mean."""
    right: float
    """The mean."""

    @property
    def off(self) -> bool:
        """Whether it is beyond chance."""
        return self.error > self.by_chance


def calibration(confidences: Sequence[float], scores: Sequence[float], *, seed: int = 0) -> Calibration | None:
    """How well `confidences` tell `scores`; None on fewer than 50 rows.

    Args:
        confidences: in [0, 1].
        scores: in [0, 1], one a confidence.
        seed: of the draws for `by_chance`.
    """
    import numpy as np

    sure, right = np.clip(np.asarray(confidences, dtype=float), 0, 1), np.asarray(scores, dtype=float)
    if len(sure) < FEWEST:
        return None

    def error(outcome: np.ndarray) -> float:
        return expected_calibration_error(calibration_bins(sure.tolist(), outcome.tolist()))

    drawn = np.random.default_rng(seed)
    by_chance = [error((drawn.random(len(sure)) < sure).astype(float)) for _ in range(DRAWS)]
    return Calibration(
        n=len(sure),
        error=error(right),
        by_chance=float(np.quantile(by_chance, 0.95)),
        brier=float(((sure - right) ** 2).mean()),
        confidence=float(sure.mean()),
        right=float(right.mean()),
    )
