"""The gate: what evidence on the sealed rows is enough for.

    promoted for quality   the interval's lower end, candidate less champion, is above 0
    promoted for tokens    at least 10 % fewer prompt tokens than the champion's, and the lower end of candidate less
                           anchor is above -1 point
    refused                anything else

The **anchor** is the last champion that was shown to be better than all before it. Were cheaper candidates measured from
the champion of the day, each could cost a point, and a year of them any number of points.

Not covered: the intervals (`evidence`), whether the sealed rows are opened at all (`validation`), and moving the champion
(`dspy_toolkit.registry`).
"""

from __future__ import annotations

from typing import Literal

from dspy_toolkit.gate.evidence import CHEAPER, Evidence
from dspy_toolkit.store import Frozen

TOLERANCE = 0.01
"""The loss (one point) that a cheaper candidate may show."""
SCARCE = 0.2
"""The share of the false-promotion rate left, below which the verdict asks for fresh rows."""

Outcome = Literal["promoted", "refused", "unchanged"]
PromotedFor = Literal["quality", "tokens"]


class Verdict(Frozen):
    """An outcome, and a sentence that gives its reason."""

    outcome: Outcome
    reason: str
    promoted_for: PromotedFor | None = None
    """What a promoted candidate is better in. `tokens` too where it beats a champion that was promoted for tokens, but is
    not shown to be better than the anchor, which therefore stays."""
    evidence: Evidence | None = None
    """None when the sealed rows were not opened."""


def unchanged() -> Verdict:
    """The verdict on a candidate whose prompt equals the champion's."""
    return Verdict(
        outcome="unchanged", reason="The candidate's prompt equals the champion's; the sealed test was not opened."
    )


def not_opened(reason: str) -> Verdict:
    """The verdict on a candidate that is not worth an opening; `reason` is that of `validation.worth_opening`."""
    return Verdict(outcome="refused", reason=reason)


def weigh(evidence: Evidence) -> Verdict:
    """Apply the gate to what the sealed rows showed."""
    outcome, promoted_for, reason = _weighed(evidence)
    if evidence.alpha_left < SCARCE:
        reason += (
            f" Only {evidence.alpha_left:.0%} of the false-promotion rate is left after {evidence.looks} "
            "openings: fresh labelled rows are due."
        )
    return Verdict(outcome=outcome, reason=reason, promoted_for=promoted_for, evidence=evidence)


def _weighed(seen: Evidence) -> tuple[Outcome, PromotedFor | None, str]:
    found = (
        f"{100 * seen.delta:+.1f} points on {_rows(seen)} "
        f"({percent_of_level(seen.level)} interval {100 * seen.low:+.1f} to {100 * seen.high:+.1f})"
    )
    if seen.low > 0:
        # Better than a champion that gave up some quality for tokens is not yet better than what it gave it up from.
        promoted_for: PromotedFor = "quality" if seen.anchor_low is None or seen.anchor_low > 0 else "tokens"
        return "promoted", promoted_for, f"Better than the champion: {found}."
    anchored = seen.low if seen.anchor_low is None else seen.anchor_low
    if anchored > -TOLERANCE and seen.tokens_ratio <= CHEAPER:
        saved = f"{1 - seen.tokens_ratio:.0%} fewer prompt tokens"
        if seen.anchor_low is None or seen.anchor_delta is None:
            return "promoted", "tokens", f"Not worse than the champion by a point, with {saved}: {found}."
        return (
            "promoted",
            "tokens",
            f"Not worse by a point than the last champion that was promoted for quality ({100 * seen.anchor_delta:+.1f} "
            f"points, at least {100 * seen.anchor_low:+.1f}), with {saved} than the champion: {found}.",
        )
    if seen.high < 0:
        return "refused", None, f"Worse than the champion: {found}."
    return (
        "refused",
        None,
        f"Not shown to be better than the champion: {found}; a true gain of "
        f"{100 * seen.detectable_effect:.1f} points would have been shown four times in five.",
    )


def _rows(seen: Evidence) -> str:
    """How many rows; where they share groups, how many groups, and how many those weigh."""
    if seen.groups in (None, seen.n) or seen.effective_groups is None:
        return f"{seen.n} sealed rows"
    return f"{seen.n} sealed rows in {seen.groups} groups (effective number {seen.effective_groups:.1f})"


def percent_of_level(level: float) -> str:
    """A level with enough digits to tell it from 100 %: `97.5 %`, `99.94 %`."""
    digits = 1
    while digits < 12 and round(100 * level, digits) >= 100:
        digits += 1
    return f"{100 * level:.{digits}f} %"
