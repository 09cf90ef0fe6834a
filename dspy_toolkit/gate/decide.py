"""Comparing a candidate with the champion on the same sealed rows, and judging whether it is promoted.

Covered: the paired interval of the difference of their means, at the level that the ledger granted, and the gate: a
candidate is promoted when the interval's lower end is above 0, or above -1 point with at least 10 % fewer prompt tokens.
Tango's interval serves 0/1 scores of independent rows; graded scores, and rows that share groups, get a bootstrap over
groups (see `intervals`).

Not covered: moving the champion (see `registry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation import Report
from dspy_toolkit.gate.intervals import detectable_mean, detectable_proportion, paired_interval
from dspy_toolkit.store import Frozen, Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from dspy_toolkit.gate.intervals import Floats

TOLERANCE = 0.01
"""The loss (one point) that fewer prompt tokens may cost."""
CHEAPER = 0.9
"""The share of the champion's prompt tokens from which a candidate counts as cheaper."""
SCARCE = 0.2
"""The share of the rate below which the sealed rows have nearly told all they can."""

Outcome = Literal["promoted", "refused", "unchanged"]


class Comparison(Frozen):
    """Two reports on the same rows, and the interval of their difference."""

    candidate: Report
    champion: Report
    delta: float = Field(ge=-1, le=1)
    """Candidate's mean less the champion's."""
    low: float
    """Below the true difference, but for a probability of (1 - level) / 2; likewise `high` above it."""
    high: float
    level: float
    """Of the interval: 1 - 2 alpha."""
    test: Literal["tango", "bootstrap"]
    detectable_effect: float
    """The smallest true difference that this comparison would have shown (lower end above 0) with 80 % power."""
    looks: int
    """Openings of these sealed rows so far, with this one."""
    alpha_left: float = Field(ge=0, le=1)
    """The share of the false-promotion rate that is left for later openings."""
    tokens_ratio: float
    """The candidate's prompt tokens over the champion's; 1 when the champion's were not counted."""


class Verdict(NamedTuple):
    """An outcome, and a sentence that gives its reason."""

    outcome: Outcome
    reason: str


def compare(
    candidate: Report, champion: Report, store: Store, *, alpha: float, looks: int, alpha_left: float
) -> Comparison:
    """Compare two reports row by row.

    Args:
        candidate: the challenger's report.
        champion: the report of the program that is live (or of the zero-shot program), on the same rows.
        store: holds both reports' rows.
        alpha: one-sided false-promotion probability that this comparison may spend, in (0, 0.5).
        looks: openings of the sealed rows so far, with this one.
        alpha_left: share of the rate left after this opening, in [0, 1].

    Raises:
        DatasetError: the two reports do not cover the same rows.
        ObjectMissing: the rows of a report are no longer in the store.
    """
    first, second, groups = _pairs(store.read_frame(candidate.rows), store.read_frame(champion.rows))
    differences, n = first - second, len(groups)
    (low, high), test = paired_interval(first, second, groups, alpha)
    if test == "tango":
        detectable = detectable_proportion(float((differences != 0).mean()), n, alpha)
    else:
        detectable = detectable_mean(differences, groups, alpha)
    return Comparison(
        candidate=candidate,
        champion=champion,
        delta=float(differences.mean()),
        low=low,
        high=high,
        level=1 - 2 * alpha,
        test=test,
        detectable_effect=detectable,
        looks=looks,
        alpha_left=alpha_left,
        tokens_ratio=candidate.usage.prompt_tokens / champion.usage.prompt_tokens
        if champion.usage.prompt_tokens
        else 1.0,
    )


def judge(comparison: Comparison | None, *, changed: bool, val_better: bool) -> Verdict:
    """Apply the gate.

    Args:
        comparison: of the candidate with the champion on the sealed rows; None when they were not opened.
        changed: the candidate's prompt differs from the champion's.
        val_better: the candidate beat the champion on validation. A candidate that is not changed, or not better there,
            is not shown the sealed rows, so needs no comparison.

    Raises:
        ValueError: a changed candidate that is better on validation comes without a comparison.
    """
    if not changed:
        return Verdict("unchanged", "The candidate's prompt equals the champion's; the sealed test was not opened.")
    if not val_better:
        return Verdict("refused", "The candidate is worse on validation; the sealed test was not opened.")
    if comparison is None:
        raise ValueError("a changed candidate that is better on validation is judged by a comparison")
    outcome, reason = _weigh(comparison)
    if comparison.alpha_left < SCARCE:
        reason += (
            f" Only {comparison.alpha_left:.0%} of the false-promotion rate is left after {comparison.looks} "
            "openings: fresh labelled rows are due."
        )
    return Verdict(outcome, reason)


def _weigh(seen: Comparison) -> Verdict:
    found = (
        f"{100 * seen.delta:+.1f} points on {seen.candidate.n} sealed rows "
        f"({_percent(seen.level)} interval {100 * seen.low:+.1f} to {100 * seen.high:+.1f})"
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


def _percent(level: float) -> str:
    """A level with as many digits as tell it from 100 %."""
    digits = 1
    while digits < 12 and round(100 * level, digits) >= 100:
        digits += 1
    return f"{100 * level:.{digits}f} %"


def _pairs(candidate: pd.DataFrame, champion: pd.DataFrame) -> tuple[Floats, Floats, NDArray[np.object_]]:
    """The candidate's scores, the champion's and the groups, all in the order of the row hashes."""
    ours, theirs = (frame.set_index("_row").sort_index() for frame in (candidate, champion))
    if not (ours.index.is_unique and ours.index.equals(theirs.index)):
        only = len(ours.index.difference(theirs.index)), len(theirs.index.difference(ours.index))
        raise DatasetError(
            f"The reports to compare do not cover the same rows: {len(ours)} of the candidate ({only[0]} only there) and "
            f"{len(theirs)} of the champion ({only[1]} only there). Evaluate both on the same split."
        )
    return ours["value"].to_numpy(float), theirs["value"].to_numpy(float), ours["_group"].to_numpy(object)
