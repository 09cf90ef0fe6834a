"""BootstrapFewShot, several times: different demonstrations from the training rows, the best set by validation.

Each candidate runs DSPy's BootstrapFewShot on a small slice of the shorter training rows, balanced over the answers and just as
large as the prompt has room for demonstrations: those that the program answers rightly come with their whole trace
(augmented demonstrations), the others with their labels. The slice bounds what a candidate costs, whatever the pass rate.
"""

from __future__ import annotations

from dspy_toolkit.optimizers.budget import Budget, rows_for
from dspy_toolkit.optimizers.plan import Impossible, Plan, run_cost, unfit
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.sampling import balanced, shorter_half
from dspy_toolkit.optimizers.search import Search

SHARE = 1 / 6
"""Of the budget, for one evaluation: four or five candidates beside the unchanged program."""
DEMOS = (6, 8, 4, 12)
"""Sizes of the demonstration sets, in turn."""
BOOTSTRAPPED = 4
"""Demonstrations with a trace, at most; DSPy's default."""
MOST_CANDIDATES = 24


def plan(profile: Profile, budget: Budget) -> Plan | Impossible:
    """As many candidates as the budget carries."""
    if reason := unfit(profile):
        return Impossible(reason=reason)
    cost = run_cost(profile)
    rows = rows_for(SHARE, budget, cost, profile.val)
    calls, candidates = rows * cost, 0
    while candidates < MOST_CANDIDATES:
        more = (rows + _size(candidates, profile.train)) * cost
        if calls + more > budget.lm_calls:
            break
        calls, candidates = calls + more, candidates + 1
    if not candidates:
        return Impossible(
            reason=f"one candidate costs about {calls + (rows + _size(0, profile.train)) * cost:.0f} LM calls, "
            f"and the {budget.name} budget has {budget.lm_calls}"
        )
    settings = {"candidates": candidates, "max_bootstrapped_demos": BOOTSTRAPPED, "val_rows": rows}
    return Plan(settings=settings, predicted_lm_calls=round(calls))


def _size(candidate: int, train: int) -> int:
    return min(DEMOS[candidate % len(DEMOS)], train)


def search(search: Search, settings: dict[str, int]) -> None:
    """Score the unchanged program, then candidate after candidate until they, or the budget, are through."""
    from dspy.teleprompt import BootstrapFewShot

    if not search.trials:  # else a start was scored beside it
        search.score(search.program.deepcopy(), "unchanged")
    for number in range(settings["candidates"]):
        if search.exhausted:
            return
        size = _size(number, len(search.train))
        rows = balanced(shorter_half(search.train, size), size, seed=search.seed * 1_000 + number)
        search.say(f"candidate {number + 1}: demonstrations from {size} rows")
        optimizer = BootstrapFewShot(
            metric=search.float_metric,
            # Without a threshold any graded score above 0 would do for a demonstration.
            metric_threshold=PASS,
            max_bootstrapped_demos=min(settings["max_bootstrapped_demos"], size),
            max_labeled_demos=size,
            # One run that fails is one demonstration less.
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
            return
        # The demonstrations alone: DSPy makes a student that has forgotten everything else, its own models too.
        candidate = search.student()
        for ours, theirs in zip(candidate.predictors(), compiled.predictors(), strict=True):
            ours.demos = theirs.demos
        search.score(candidate, f"candidate {number + 1} ({size} demonstrations)")
