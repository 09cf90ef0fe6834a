"""BootstrapFewShot, once: the program answers training rows until enough of its answers are right to be demonstrations.

Those come with their whole trace (augmented demonstrations); the rest of the prompt is filled with labelled rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.sampling import balanced, shorter_half
from dspy_toolkit.optimizers.search.search import Search
from dspy_toolkit.optimizers.settings import BootstrapSettings

if TYPE_CHECKING:
    import dspy

SHARE = 1 / 4
"""Of the budget, for one evaluation; the baseline and one candidate are evaluated."""
BOOTSTRAPPED = 4
"""Demonstrations with a trace, at most; DSPy's default."""
DEMOS = 8
"""Demonstrations together; DSPy's default of 16 is more than small models gain from."""
MOST_ROWS = 48
"""Training rows that the program is run on, at most."""
SPARE = 1.5
"""Rows to provide for each that is needed on average, since the pass rate is an estimate."""


def plan(profile: Profile, budget: Budget, rows: int) -> Plan | Infeasible:
    """One candidate, scored on `rows` validation rows; training rows are run until BOOTSTRAPPED answers are correct."""
    cost = run_cost(profile)
    needed = BOOTSTRAPPED / max(profile.pass_rate, 1e-9)
    slice_ = min(profile.train, max(DEMOS, min(MOST_ROWS, math.ceil(SPARE * needed))))
    calls = (2 * rows + min(slice_, needed)) * cost
    if (2 * rows + slice_) * cost > budget.lm_calls:
        slice_ = int(budget.lm_calls / cost) - 2 * rows
        calls = (2 * rows + min(slice_, needed)) * cost
    if slice_ < min(DEMOS, profile.train):
        least = (2 * rows + min(DEMOS, profile.train)) * cost
        return Infeasible(
            reason=f"its candidate costs about {least:.0f} LM calls, and the {budget.name} budget has {budget.lm_calls}"
        )
    demos = min(DEMOS, slice_)
    settings = BootstrapSettings(slice=slice_, max_bootstrapped_demos=BOOTSTRAPPED, val_rows=rows)
    return Plan(settings=settings, predicted_lm_calls=round(calls), demos=demos / 2)


def search(search: Search, settings: BootstrapSettings) -> None:
    """Score the baseline, make the candidate, score it."""
    search.score_baseline()
    if search.exhausted:
        return
    # Always the first rows of the same order, so that a larger slice begins with a smaller one.
    rows = balanced(shorter_half(search.train, MOST_ROWS), MOST_ROWS, seed=search.seed)[: settings.slice]
    search.say(f"demonstrations from {len(rows)} rows")
    most = min(DEMOS, len(rows))
    candidate = bootstrap(search, rows, min(settings.max_bootstrapped_demos, most), most)
    if candidate is not None:
        search.score(candidate, f"candidate ({most} demonstrations)")


def bootstrap(search: Search, rows: list[dspy.Example], bootstrapped: int, demos: int) -> dspy.Module | None:
    """Run DSPy's BootstrapFewShot on `rows`.

    Args:
        rows: tried in this order.
        bootstrapped: demonstrations with a trace, at most.
        demos: demonstrations together, at most.

    Returns: the baseline, with the demonstrations; None when the budget ran out.
    """
    from dspy.teleprompt import BootstrapFewShot

    optimizer = BootstrapFewShot(
        metric=search.float_metric,
        # Without a threshold any graded score above 0 would do for a demonstration.
        metric_threshold=PASS,
        max_bootstrapped_demos=bootstrapped,
        max_labeled_demos=demos,
        teacher_settings={"lm": search.teacher_lm},
        # A run that fails is one demonstration less, never the end of the search.
        max_errors=len(rows) + 1,
    )
    compiled = search.attempt(
        optimizer.compile,
        search.student(),
        teacher=search.teacher(),
        trainset=rows,
        metric=search.float_metric,
        candidates="candidate",
    )
    if compiled is None:
        return None
    # Only the demonstrations are taken: DSPy resets the student it compiles, its language models included.
    candidate = search.student()
    for ours, theirs in zip(candidate.predictors(), compiled.predictors(), strict=True):
        ours.demos = theirs.demos
    return candidate
