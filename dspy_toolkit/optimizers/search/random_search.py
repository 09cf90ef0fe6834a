"""Random search: BootstrapFewShot several times, on different training rows; the best set of demonstrations by
validation.

Each candidate runs DSPy's BootstrapFewShot on a small slice of the shorter training rows, balanced over the answers and
just as large as the prompt has room for demonstrations: those that the program answers correctly come with their whole
trace (augmented demonstrations), the others with their labels. The slice bounds what a candidate costs, whatever the
pass rate.
"""

from __future__ import annotations

from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced, shorter_half
from dspy_toolkit.optimizers.search.bootstrap import BOOTSTRAPPED, bootstrap
from dspy_toolkit.optimizers.search.search import Search
from dspy_toolkit.optimizers.settings import RandomSettings

SHARE = 1 / 6
"""Of the budget, for one evaluation: four or five candidates beside the baseline."""
DEMOS = (6, 8, 4, 12)
"""Sizes of the demonstration sets, in the order they are tried."""
MOST_CANDIDATES = 24


def plan(profile: Profile, budget: Budget, rows: int) -> Plan | Infeasible:
    """As many candidates as fit the budget, each scored on `rows` validation rows."""
    cost = run_cost(profile)
    calls, candidates = rows * cost, 0
    while candidates < MOST_CANDIDATES:
        more = (rows + _size(candidates, profile.train)) * cost
        if calls + more > budget.lm_calls:
            break
        calls, candidates = calls + more, candidates + 1
    if not candidates:
        return Infeasible(
            reason=f"one candidate costs about {calls + (rows + _size(0, profile.train)) * cost:.0f} LM calls, "
            f"and the {budget.name} budget has {budget.lm_calls}"
        )
    settings = RandomSettings(candidates=candidates, max_bootstrapped_demos=BOOTSTRAPPED, val_rows=rows)
    sizes = [0, *(_size(candidate, profile.train) for candidate in range(candidates))]
    return Plan(settings=settings, predicted_lm_calls=round(calls), demos=sum(sizes) / len(sizes))


def _size(candidate: int, train: int) -> int:
    return min(DEMOS[candidate % len(DEMOS)], train)


def search(search: Search, settings: RandomSettings) -> None:
    """Score the baseline, then one candidate after another, until all are scored or the budget is spent."""
    search.score_baseline()
    for number in range(settings.candidates):
        if search.exhausted:
            return
        size = _size(number, len(search.train))
        rows = balanced(shorter_half(search.train, size), size, seed=search.seed * 1_000 + number)
        search.say(f"candidate {number + 1}: demonstrations from {size} rows")
        candidate = bootstrap(search, rows, min(settings.max_bootstrapped_demos, size), size)
        if candidate is None:
            return
        search.score(candidate, f"candidate {number + 1} ({size} demonstrations)")
