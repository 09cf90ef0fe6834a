"""Which optimizer, with a written reason: a pure function of the profile, the budget and similar runs.

The order of preference follows what was published (GEPA before MIPROv2 before random search where a model can reflect:
arXiv 2507.19457), what was measured on small models (`benchmarks.optimizers`: labelled rows before bootstrapped ones
where a trace holds nothing else), and what a profile rules out: without a usable reflector GEPA has nothing to evolve;
without right answers there is nothing to bootstrap from; few validation rows cannot tell many candidates apart. Where
there are enough similar runs their gains decide the order (`similar_runs`); what a profile rules out stays ruled out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from dspy_toolkit.errors import OptimizerError, nearest
from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Choice, Forecast, Infeasible, Plan, unfit
from dspy_toolkit.optimizers.plan.similar_runs import Preference, prefer
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.race import race
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS, forecast, plan_optimizer
from dspy_toolkit.optimizers.settings import NoSearch
from dspy_toolkit.settings import OptimizerName

if TYPE_CHECKING:
    from dspy_toolkit.tracking.history import PastRun

PERFECT = 0.995
"""The baseline score from which there is nothing to gain."""
SCARCE_PASSES = 0.05
"""The pass rate below which bootstrapping finds too few demonstrations: forty runs for two of them."""
FEW_ROWS = 20
"""Validation rows below which the best of many candidates is the luckiest one."""


def select(
    profile: Profile, optimizer: str, budget: Budget, history: Iterable[PastRun] = (), *, started: bool = False
) -> Choice:
    """Choose.

    Args:
        optimizer: `auto`, `race`, or the one to take.
        budget: what it may spend; one stated in time is turned into calls here.
        history: similar runs (`similar_runs`), in any order.
        started: whether a race starts from another program.

    Raises:
        OptimizerError: no such optimizer, or it cannot run with this budget (or none can).
    """
    check_optimizer(optimizer)
    if optimizer == "auto" and profile.baseline >= PERFECT:
        why = f"The program scores {profile.baseline:.0%} as it is: there is nothing to gain."
        return _choice(Plan(settings=NoSearch(), predicted_lm_calls=0), budget, why, dict.fromkeys(OPTIMIZERS, why), {})
    budget = budget.within(profile.seconds_per_call)
    plans = {name: plan_optimizer(name, profile, budget) for name in OPTIMIZERS}
    costs = {name: forecast(each, profile) for name, each in plans.items() if isinstance(each, Plan)}
    preference = prefer(order(profile), history)
    if optimizer == "race":
        return _race(profile, budget, costs, preference, started=started)
    if optimizer != "auto":
        asked = plans[optimizer]
        if isinstance(asked, Infeasible):
            raise OptimizerError(
                f"{optimizer} cannot run here: {asked.reason}. Take a larger --budget or --optimizer auto."
            )
        others = {name: "not asked for" for name in plans if name != optimizer}
        return _choice(asked, budget, f"{optimizer} was asked for.", others, costs)
    return _best(profile, plans, budget, costs, preference)


def check_optimizer(name: str) -> None:
    """Raise OptimizerError, with the nearest names, unless `name` is `auto`, `race` or an optimizer."""
    if name not in (known := get_args(OptimizerName)):
        raise OptimizerError(f"There is no optimizer {name!r}.{nearest(name, known)} Correct --optimizer.")


def order(profile: Profile) -> tuple[str, ...]:
    """The optimizers from the first choice to the last, by the profile alone."""
    # Where a trace says no more than its row, labelled rows serve as well, and cost no runs.
    demonstrations = ("labelled", "random", "bootstrap") if profile.labelled else ("random", "bootstrap", "labelled")
    if profile.reflector_ok:
        return "gepa", "mipro", *demonstrations
    # Without a usable proposer MIPROv2 has only demonstrations, and the others try more of them for as many calls.
    return *demonstrations, "mipro", "gepa"


def objection(name: str, profile: Profile) -> str | None:
    """Why the profile rules out an optimizer that the budget allows; None when it does not."""
    if name == "gepa" and not profile.reflector_ok:
        return f"the reflection model cannot write a usable instruction: {profile.reflector_note}"
    if name == "gepa" and not profile.feedback:
        return "the metric gives no feedback to reflect on"
    if name in ("bootstrap", "random") and profile.predictors == 1 and profile.pass_rate < SCARCE_PASSES:
        return (
            f"{profile.pass_rate:.0%} of the program's answers are right, so there is next to nothing to bootstrap from"
        )
    if name in ("random", "mipro") and profile.val < FEW_ROWS:
        return f"{profile.val} validation rows cannot tell many candidates apart"
    return None


def _race(
    profile: Profile, budget: Budget, costs: dict[str, Forecast], preference: Preference, *, started: bool
) -> Choice:
    if reason := unfit(profile):
        raise OptimizerError(f"race cannot run here: {reason}. Add rows.")
    against = {name: reason for name in OPTIMIZERS if (reason := objection(name, profile)) is not None}
    names = [name for name in preference.order if name not in against]
    settings, left_out = race.plan_race(names, profile, budget, started=started)
    if not settings.arms:
        why = "; ".join(f"{name}: {reason}" for name, reason in {**against, **left_out}.items())
        raise OptimizerError(f"race cannot run here ({why}). Take a larger --budget.")
    why = f"A race of {', '.join(settings.arms)} against the baseline was asked for. {preference.reason}"
    whole = Plan(settings=settings, predicted_lm_calls=budget.lm_calls)
    return _choice(whole, budget, why.rstrip(), {**against, **left_out}, costs)


def _best(
    profile: Profile,
    plans: dict[str, Plan | Infeasible],
    budget: Budget,
    costs: dict[str, Forecast],
    preference: Preference,
) -> Choice:
    against: dict[str, str] = {}
    for name, found in plans.items():
        if reason := found.reason if isinstance(found, Infeasible) else objection(name, profile):
            against[name] = reason
    for name in preference.order:
        if name in against or isinstance(found := plans[name], Infeasible):
            continue
        rest = {other: f"{name} comes first" for other in plans if other != name and other not in against}
        why = f"{_praise(name, profile)} {preference.reason}".rstrip()
        return _choice(found, budget, why, {**against, **rest}, costs)
    why = "; ".join(f"{name}: {reason}" for name, reason in against.items())
    raise OptimizerError(f"No optimizer can run here ({why}). Add rows, or take a larger --budget.")


def _praise(name: str, profile: Profile) -> str:
    at = f"The program scores {profile.baseline:.0%} on {profile.probed} validation rows"
    if name == "gepa":
        return f"{at}; the metric explains itself and the reflection model can rewrite the instruction."
    if name == "mipro":
        return f"{at}; demonstrations and instructions can be tried together."
    if name == "labelled":
        return f"{at}; labelled rows can serve as demonstrations."
    return f"{at}, and {profile.pass_rate:.0%} of its answers can serve as demonstrations."


def _choice(
    plan: Plan, budget: Budget, reason: str, alternatives: dict[str, str], costs: dict[str, Forecast]
) -> Choice:
    return Choice(
        settings=plan.settings,
        budget=budget.name,
        lm_calls=budget.lm_calls,
        predicted_lm_calls=plan.predicted_lm_calls,
        reason=reason,
        alternatives=alternatives,
        forecasts=costs,
    )
