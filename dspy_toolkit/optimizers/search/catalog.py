"""The optimizers by name: what each plans, what it will cost, and how it searches.

Every optimizer plans its number of steps by what it may spend and by how many validation rows a candidate is scored on.
A larger budget means more steps of the same kind in the same order, so that a search with a small allowance is the
beginning of one with a larger. A race rests on that: it goes on from there, with the cache of replies in place of what
was paid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy_toolkit.optimizers.budget import Budget, rows_for
from dspy_toolkit.optimizers.choice import Forecast, Infeasible, Plan, run_cost, unfit
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.search import bootstrap, gepa, labelled, mipro, random_search
from dspy_toolkit.optimizers.search.search import Search


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer."""

    name: str
    title: str
    """For people."""
    share: float
    """Of a budget, for one evaluation on the validation rows."""
    plan: Callable[[Profile, Budget, int], Plan | Infeasible]
    """(profile, budget, validation rows) → settings and their cost."""
    search: Callable[[Search, Any], None]
    """Runs with the settings that `plan` gave."""


OPTIMIZERS = {
    spec.name: spec
    for spec in (
        OptimizerSpec("gepa", "GEPA", gepa.SHARE, gepa.plan, gepa.search),
        OptimizerSpec("mipro", "MIPROv2", mipro.SHARE, mipro.plan, mipro.search),
        OptimizerSpec("random", "random search", random_search.SHARE, random_search.plan, random_search.search),
        OptimizerSpec("bootstrap", "BootstrapFewShot", bootstrap.SHARE, bootstrap.plan, bootstrap.search),
        OptimizerSpec("labelled", "labelled demonstrations", labelled.SHARE, labelled.plan, labelled.search),
    )
}
"""From the dearest program to the cheapest."""


def plan_optimizer(name: str, profile: Profile, budget: Budget) -> Plan | Infeasible:
    """What the optimizer `name` would do with all of `budget`."""
    spec = OPTIMIZERS[name]
    if reason := unfit(profile):
        return Infeasible(reason=reason)
    return spec.plan(profile, budget, rows_for(spec.share, budget, run_cost(profile), profile.val))


def least(name: str, profile: Profile, rows: int, most: int) -> int | None:
    """The smallest allowance, in LM calls, with which the optimizer `name` makes a candidate; None where `most` is too little."""
    if unfit(profile) or isinstance(OPTIMIZERS[name].plan(profile, _allowance(most), rows), Infeasible):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if isinstance(OPTIMIZERS[name].plan(profile, _allowance(middle), rows), Infeasible):
            low = middle
        else:
            high = middle
    return high


def _allowance(calls: int) -> Budget:
    return Budget(name="remaining", lm_calls=calls)


def forecast(plan: Plan, profile: Profile) -> Forecast:
    """What `plan` costs on this machine: the calls that it counted, at the probe's tokens and seconds a call."""
    calls = plan.predicted_lm_calls
    tokens = profile.prompt_tokens / run_cost(profile) + plan.demos * profile.demo_tokens
    seconds = profile.seconds_per_call * calls if profile.seconds_per_call else None
    return Forecast(lm_calls=calls, prompt_tokens=round(tokens * calls), seconds=seconds)
