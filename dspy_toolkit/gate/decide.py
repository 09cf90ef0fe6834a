"""Deciding, by scores alone, whether a candidate is promoted over the champion.

Covered: the paired interval of the difference of their means, at the level that the ledger granted, and the gate: a
candidate is promoted when the interval's lower end is above 0, or above -1 point with at least 10 % fewer prompt
tokens. Tango's interval serves 0/1 scores of independent rows; graded scores, and rows that share groups, get a
bootstrap over groups (see `intervals`).

Not covered: running programs on the rows (`dspy_toolkit.pipeline.compare`), and moving the champion
(`dspy_toolkit.registry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from dspy_toolkit.gate.intervals import detectable_mean, detectable_proportion, paired_interval
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dspy_toolkit.gate.intervals import Floats

TOLERANCE = 0.01
"""The loss (one point) that a cheaper candidate may show."""
CHEAPER = 0.9
"""The share of the champion's prompt tokens from which a candidate counts as cheaper."""
SCARCE = 0.2
"""The share of the false-promotion rate left, below which the verdict asks for fresh rows."""

Outcome = Literal["promoted", "refused", "unchanged"]


class Evidence(Frozen):
    """What paired scores on the same sealed rows show."""

    n: int
    """Rows."""
    delta: float = Field(ge=-1, le=1)
    """Candidate's mean less the champion's."""
    low: float
    """Lower end of the interval; each end misses the true difference with a probability of (1 - level) / 2."""
    high: float
    level: float
    """Level of the interval: 1 - 2 alpha."""
    test: Literal["tango", "bootstrap"]
    detectable_effect: float
    """Minimum detectable effect: the smallest true difference whose lower end is above 0 with 80 % power."""
    looks: int
    """Openings of these sealed rows so far, this one included."""
    alpha_left: float = Field(ge=0, le=1)
    """The share of the false-promotion rate that is left for later openings."""
    tokens_ratio: float
    """The candidate's prompt tokens over the champion's; 1 when the champion's were not counted."""


class Verdict(NamedTuple):
    """An outcome, and a sentence that gives its reason."""

    outcome: Outcome
    reason: str


def compare(
    candidate: Floats,
    champion: Floats,
    groups: NDArray[np.object_],
    *,
    alpha: float,
    looks: int,
    alpha_left: float,
    tokens_ratio: float = 1.0,
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
    """
    differences, n = candidate - champion, len(groups)
    (low, high), test = paired_interval(candidate, champion, groups, alpha)
    if test == "tango":
        detectable = detectable_proportion(float((differences != 0).mean()), n, alpha)
    else:
        detectable = detectable_mean(differences, groups, alpha)
    return Evidence(
        n=n,
        delta=float(differences.mean()),
        low=low,
        high=high,
        level=1 - 2 * alpha,
        test=test,
        detectable_effect=detectable,
        looks=looks,
        alpha_left=alpha_left,
        tokens_ratio=tokens_ratio,
    )


def verdict(evidence: Evidence | None, *, changed: bool, val_better: bool) -> Verdict:
    """Apply the gate.

    Args:
        evidence: of the sealed rows; None when they were not opened.
        changed: the candidate's prompt differs from the champion's.
        val_better: the candidate is not worse than the champion on validation. A candidate that is unchanged, or worse
        there,
            is not shown the sealed rows, so it needs no evidence.

    Raises:
        ValueError: a changed candidate that is better on validation comes without evidence.
    """
    if not changed:
        return Verdict("unchanged", "The candidate's prompt equals the champion's; the sealed test was not opened.")
    if not val_better:
        return Verdict("refused", "The candidate is worse on validation; the sealed test was not opened.")
    if evidence is None:
        raise ValueError("a changed candidate that is better on validation is judged by evidence")
    outcome, reason = _weigh(evidence)
    if evidence.alpha_left < SCARCE:
        reason += (
            f" Only {evidence.alpha_left:.0%} of the false-promotion rate is left after {evidence.looks} "
            "openings: fresh labelled rows are due."
        )
    return Verdict(outcome, reason)


def _weigh(seen: Evidence) -> Verdict:
    found = (
        f"{100 * seen.delta:+.1f} points on {seen.n} sealed rows "
        f"({percent_of_level(seen.level)} interval {100 * seen.low:+.1f} to {100 * seen.high:+.1f})"
    )
    if seen.low > 0:
        return Verdict("promoted", f"Better than the champion: {found}.")
    if seen.low > -TOLERANCE and seen.tokens_ratio <= CHEAPER:
        saved = f"{1 - seen.tokens_ratio:.0%} fewer prompt tokens"
        return Verdict("promoted", f"Not worse than the champion by a point, with {saved}: {found}.")
    if seen.high < 0:
        return Verdict("refused", f"Worse than the champion: {found}.")
    return Verdict(
        "refused",
        f"Not shown to be better than the champion: {found}; a true gain of "
        f"{100 * seen.detectable_effect:.1f} points would have been shown four times in five.",
    )


def percent_of_level(level: float) -> str:
    """A level with enough digits to tell it from 100 %: `97.5 %`, `99.94 %`."""
    digits = 1
    while digits < 12 and round(100 * level, digits) >= 100:
        digits += 1
    return f"{100 * level:.{digits}f} %"
