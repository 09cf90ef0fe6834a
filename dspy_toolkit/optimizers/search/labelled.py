"""Labelled demonstrations: training rows with their labels, balanced over the answers. Making them needs no run of the
program.

Like DSPy's LabeledFewShot, for several numbers of demonstrations. For programs of one predictor: a row holds no answer
for the steps in between.
"""

from __future__ import annotations

from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced, shorter_half
from dspy_toolkit.optimizers.search.search import Search
from dspy_toolkit.optimizers.settings import LabelledSettings

SHARE = 1 / 4
"""Of the budget, for one evaluation: three candidates beside the baseline."""
SIZES = (8, 4, 16)
"""Numbers of demonstrations, in the order they are tried."""


def plan(profile: Profile, budget: Budget, rows: int) -> Plan | Infeasible:
    """As many of SIZES as fit the budget, each scored on `rows` validation rows."""
    if profile.predictors > 1:
        return Infeasible(
            reason=f"the rows hold no answers for the steps in between of a program with {profile.predictors} predictors"
        )
    evaluation = rows * run_cost(profile)
    sizes = _sizes(profile.train)
    candidates = min(len(sizes), int(budget.lm_calls // evaluation) - 1)
    if candidates < 1:
        return Infeasible(
            reason=f"one candidate costs about {2 * evaluation:.0f} LM calls, and the {budget.name} budget has "
            f"{budget.lm_calls}"
        )
    return Plan(
        settings=LabelledSettings(candidates=candidates, val_rows=rows),
        predicted_lm_calls=round((1 + candidates) * evaluation),
        demos=sum(sizes[:candidates]) / (1 + candidates),
    )


def search(search: Search, settings: LabelledSettings) -> None:
    """Score the baseline, then one candidate for each number of demonstrations."""
    search.score_baseline()
    for number, size in enumerate(_sizes(len(search.train))[: settings.candidates]):
        if search.exhausted:
            return
        candidate = search.student()
        rows = balanced(shorter_half(search.train, size), size, seed=search.seed * 1_000 + number)
        for predictor in candidate.predictors():
            predictor.demos = list(rows)
        search.score(candidate, f"{size} labelled demonstrations")


def _sizes(train: int) -> list[int]:
    """SIZES cut to the number of training rows, each size once."""
    return list(dict.fromkeys(min(size, train) for size in SIZES))
