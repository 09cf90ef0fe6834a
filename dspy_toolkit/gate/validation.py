"""Whether a candidate is worth an opening of the sealed rows: what it showed on validation.

Every opening spends a part of the false-promotion rate, so a candidate that validation does not speak for is not shown the
sealed rows. Validation may be looked at without end: nothing is concluded from it but this.

Covered: a paired score test over groups of rows. Not covered: the sealed rows themselves (`evidence`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.gate.bounded_mean import by_group
from dspy_toolkit.gate.evidence import CHEAPER

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ENOUGH = 1.0
"""The paired z from which validation speaks for a candidate: one in six of those that are as good as the champion."""

NONE = 1e-9
"""Two means that differ by less are equal."""


class Worth(NamedTuple):
    """Whether to open the sealed rows, and a sentence that says why."""

    worth: bool
    reason: str


def paired_z(candidate: ArrayLike, champion: ArrayLike, groups: ArrayLike) -> float:
    """The paired score statistic of two series of scores: the sum of the differences over its standard error.

    With d a group's sum of differences: Σd / √Σd², which for 0/1 scores of rows that are all their own group is McNemar's z
    without correction. 0 where no row differs.
    """
    import numpy as np

    sums = by_group(np.asarray(candidate, dtype=float) - np.asarray(champion, dtype=float), groups).totals
    spread = float(np.sqrt((sums**2).sum()))
    return float(sums.sum()) / spread if spread else 0.0


def worth_opening(candidate: ArrayLike, champion: ArrayLike, groups: ArrayLike, *, tokens_ratio: float = 1.0) -> Worth:
    """Whether validation speaks for the candidate: z of 1 or more; or not worse, with at least 10 % fewer prompt tokens.

    Args:
        candidate: the candidate's scores in [0, 1] on validation, one for each row.
        champion: the champion's, in the same order.
        groups: the group of near-duplicates that each row belongs to.
        tokens_ratio: the candidate's prompt tokens over the champion's.
    """
    import numpy as np

    ours, theirs = np.asarray(candidate, dtype=float), np.asarray(champion, dtype=float)
    delta, z = float((ours - theirs).mean()), paired_z(ours, theirs, groups)
    cheaper = tokens_ratio <= CHEAPER
    found = f"{100 * delta:+.1f} points on {len(ours)} validation rows, z = {z:.2f}"
    if z >= ENOUGH:
        return Worth(True, f"Better on validation: {found}.")
    if cheaper and delta > -NONE:
        return Worth(True, f"Not worse on validation, with {1 - tokens_ratio:.0%} fewer prompt tokens: {found}.")
    what = "is worse" if delta < -NONE else "is not shown to be better"
    return Worth(
        False,
        f"The candidate {what} on validation; the sealed test was not opened: {found}, and it opens from {ENOUGH:g}.",
    )
