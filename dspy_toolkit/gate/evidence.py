"""What paired scores on the same rows show: the difference of two programs' means, with its interval.

Covered: the interval at the level that the ledger granted, the difference that it would have shown, how many groups of rows
it rests on, repeats, and the interval from the anchor (see `verdict`) where that is another program than the champion.

Not covered: what follows from it (`verdict`), and permission to open the rows (`ledger`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.bounded_mean import by_group
from dspy_toolkit.gate.intervals import Method, detectable_mean, detectable_proportion, paired_interval
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dspy_toolkit.gate.intervals import Floats

    Scores = Sequence[Any] | NDArray[Any]

CHEAPER = 0.9
"""The share of the champion's prompt tokens from which a candidate counts as cheaper."""


class Evidence(Frozen):
    """What paired scores on the same sealed rows show."""

    n: int
    """Rows."""
    groups: int | None = None
    """Groups of near-duplicates among them; None in records of version 0.1.0."""
    effective_groups: float | None = None
    """Kish's effective number of them, (Σn)² / Σn²: what the evidence weighs where groups are of different sizes."""
    delta: float = Field(ge=-1, le=1)
    """Candidate's mean less the champion's."""
    low: float
    """Lower end of the interval; each end misses the true difference with a probability of (1 - level) / 2."""
    high: float
    level: float
    """Level of the interval: 1 - 2 alpha."""
    test: Method
    detectable_effect: float
    """Minimum detectable effect: the smallest true difference whose lower end is above 0 with 80 % power."""
    looks: int
    """Openings of these sealed rows, and of those that are connected with them, so far; this one included."""
    alpha_left: float = Field(ge=0, le=1)
    """The share of the false-promotion rate that is left for later openings."""
    tokens_ratio: float
    """The candidate's prompt tokens over the champion's; 1 when the champion's were not counted."""
    anchor_delta: float | None = Field(default=None, ge=-1, le=1)
    """Candidate's mean less the anchor's; None where the champion is the anchor."""
    anchor_low: float | None = None
    """Lower end of its interval, at the same level."""


def compare(
    candidate: ArrayLike,
    champion: ArrayLike,
    groups: ArrayLike,
    *,
    alpha: float,
    looks: int,
    alpha_left: float,
    tokens_ratio: float = 1.0,
    anchor: ArrayLike | None = None,
) -> Evidence:
    """Compare two programs' scores, row by row.

    Args:
        candidate: the candidate's scores in [0, 1], one for each row.
        champion: the champion's (or the baseline's), in the same order.
        groups: the group of near-duplicates that each row belongs to.
        alpha: one-sided false-promotion probability that this comparison may spend, in (0, 0.5).
        looks: openings of the sealed rows so far, this one included.
        alpha_left: share of the rate left after this opening, in [0, 1].
        tokens_ratio: the candidate's prompt tokens over the champion's.
        anchor: the scores of the last champion that was promoted for quality, where that is not the champion. A cheaper
            candidate may then be promoted by either of two intervals, so each gets half of `alpha`.
    """
    import numpy as np

    ours, theirs = np.asarray(candidate, dtype=float), np.asarray(champion, dtype=float)
    if anchor is not None and tokens_ratio <= CHEAPER:
        alpha /= 2
    differences, sizes = ours - theirs, by_group(ours, groups)
    (low, high), test = paired_interval(ours, theirs, groups, alpha)
    if test == "tango":
        detectable = detectable_proportion(float((differences != 0).mean()), len(ours), alpha)
    else:
        detectable = detectable_mean(differences, groups, alpha)
    anchored: dict[str, float] = {}
    if anchor is not None:
        before = np.asarray(anchor, dtype=float)
        found, _ = paired_interval(ours, before, groups, alpha)
        anchored = {"anchor_delta": float((ours - before).mean()), "anchor_low": found.low}
    return Evidence(
        n=len(ours),
        groups=len(sizes.sizes),
        effective_groups=sizes.effective,
        delta=float(differences.mean()),
        low=low,
        high=high,
        level=1 - 2 * alpha,
        test=test,
        detectable_effect=detectable,
        looks=looks,
        alpha_left=alpha_left,
        tokens_ratio=tokens_ratio,
        **anchored,
    )


def row_means(scores: Scores, whose: str = "The") -> Floats:
    """One score a row: each row's own, or the mean of its repeats (of a program that samples).

    The mean of a row's repeats varies from row to row by both, what differs between rows and what differs between runs
    of one row. Groups of rows are what an interval resamples, so it has both in it; drawing repeats within rows
    as well would count the second one twice.

    Args:
        scores: numbers in [0, 1], or for each row a list of them; rows may have different numbers of repeats.
        whose: whose scores they are, as an error's first words.

    Raises:
        DatasetError: there are no rows, a row has no repeats, or a score is not a number in [0, 1].
    """
    import numpy as np

    means = []
    for number, row in enumerate(scores, start=1):
        try:
            repeats = np.atleast_1d(np.asarray(row, dtype=float))
        except (TypeError, ValueError):
            raise DatasetError(f"{whose} score of row {number} is {row!r}, not a number. Score every row.") from None
        if repeats.ndim != 1 or not repeats.size:
            raise DatasetError(f"{whose} score of row {number} is {row!r}: give a number, or a list of repeats.")
        if not ((repeats >= 0) & (repeats <= 1)).all():  # NaN is neither
            raise DatasetError(f"{whose} score of row {number} is {row!r}, outside [0, 1]. Scale the scores.")
        means.append(repeats.mean())
    if not means:
        raise DatasetError(f"{whose} scores are empty. Give one for each row.")
    return np.asarray(means)
