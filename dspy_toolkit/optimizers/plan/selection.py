"""Which generators fill the pool, with a written reason: a pure function of the profile, the budget and similar runs.

An optimizer that is asked for by name is the only one. `race` lets in every one that can run at all. `auto` leaves out what
the profile speaks against: without a usable reflection model GEPA and MIPROv2 have nothing to propose, without right answers
there is nothing to bootstrap from. That is all the difference. Within the pool candidates are judged by their scores, whoever made
them; what gained in similar runs is asked earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast, get_args

from dspy_toolkit.errors import OptimizerError, nearest
from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Choice, Forecast, Infeasible, run_cost, unfit
from dspy_toolkit.optimizers.generators.catalog import GENERATORS, forecast, plan
from dspy_toolkit.optimizers.plan.similar_runs import Experience, experience
from dspy_toolkit.optimizers.pool.policy import rungs
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import NoSearch, PoolSettings
from dspy_toolkit.settings import GepaSettings, OptimizerName

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.pool.entry import Cost
    from dspy_toolkit.tracking.history import PastRun

PERFECT = 0.995
"""The baseline score from which there is nothing to gain."""
SCARCE_PASSES = 0.05
"""The pass rate below which bootstrapping finds too few demonstrations: forty runs for two of them."""


def select(
    profile: Profile, optimizer: str, budget: Budget, history: Iterable[PastRun] = (), gepa: GepaSettings | None = None
) -> Choice:
    """Choose.

    Args:
        optimizer: `auto`, `race`, or the one to take.
        budget: what it may spend; one stated in time or dollars is turned into calls here.
        history: similar runs (`similar_runs`), in any order.
        gepa: how GEPA searches.

    Raises:
        OptimizerError: no such optimizer, or it cannot run with this budget (or none can).
    """
    check_optimizer(optimizer)
    if optimizer == "auto" and profile.baseline >= PERFECT:
        why = f"The program scores {profile.baseline:.0%} as it is: there is nothing to gain."
        return Choice(
            settings=NoSearch(), budget=budget.name, lm_calls=budget.lm_calls, predicted_lm_calls=0, reason=why,
            alternatives=dict.fromkeys(GENERATORS, why),
        )  # fmt: skip
    budget = budget.within(profile)
    if reason := unfit(profile):
        raise OptimizerError(f"{optimizer} cannot run here: {reason}. Add rows.")
    steps = rungs(profile.val, budget.lm_calls, run_cost(profile))
    asked = cast("OptimizerName", optimizer)  # it was checked
    settings = PoolSettings(optimizer=asked, generators=tuple(GENERATORS), rungs=steps, gepa=gepa or GepaSettings())
    costs = {name: plan(name, profile, settings, budget) for name in GENERATORS}
    able = {name: cost for name, cost in costs.items() if not isinstance(cost, Infeasible)}
    forecasts = {name: forecast(cost, profile, settings, budget) for name, cost in able.items()}
    if optimizer not in ("auto", "race"):
        if isinstance(cost := costs[optimizer], Infeasible):
            raise OptimizerError(
                f"{optimizer} cannot run here: {cost.reason}. Take a larger --budget or --optimizer auto."
            )
        beside = tuple(name for name in GENERATORS[optimizer].beside if name in able)
        others = {name: "not asked for" for name in GENERATORS if name not in (optimizer, *beside)}
        chosen = settings.model_copy(update={"generators": (optimizer, *beside)})
        return _choice(chosen, budget, f"{optimizer} was asked for.", others, forecasts)
    learned = experience(history)
    against = {name: cost.reason for name, cost in costs.items() if isinstance(cost, Infeasible)}
    against |= {name: reason for name in able if (reason := _too_dear(name, able[name], budget)) is not None}
    if optimizer == "auto":
        objections = {name: reason for name in able if (reason := objection(name, profile)) is not None}
        against = objections | against
    taken = tuple(name for name in GENERATORS if name not in against)
    if not taken:
        why = "; ".join(f"{name}: {reason}" for name, reason in against.items())
        raise OptimizerError(f"No optimizer can run here ({why}). Add rows, or take a larger --budget.")
    priors = {name: gain for name, gain in learned.priors.items() if name in taken}
    chosen = settings.model_copy(update={"generators": taken, "priors": priors})
    return _choice(chosen, budget, _reason(optimizer, taken, profile, learned), against, forecasts)


def check_optimizer(name: str) -> None:
    """Raise OptimizerError, with the nearest names, unless `name` is `auto`, `race` or an optimizer."""
    if name not in (known := get_args(OptimizerName)):
        raise OptimizerError(f"There is no optimizer {name!r}.{nearest(name, known)} Correct --optimizer.")


def objection(name: str, profile: Profile) -> str | None:
    """Why `auto` leaves out an optimizer that the budget allows; None when it does not."""
    if name == "gepa" and not profile.reflector_ok:
        return f"the reflection model cannot write a usable instruction: {profile.reflector_note}"
    if name == "gepa" and not profile.feedback:
        return "the metric gives no feedback to reflect on"
    if name == "mipro" and not profile.reflector_ok:
        # Its proposals are long texts, and its demonstrations those of the others.
        return f"the reflection model cannot write a usable instruction: {profile.reflector_note}"
    if name == "simba" and not profile.reflector_ok:
        return f"the reflection model cannot write a usable rule: {profile.reflector_note}"
    if name in ("bootstrap", "random") and profile.predictors == 1 and profile.pass_rate < SCARCE_PASSES:
        return (
            f"{profile.pass_rate:.0%} of the program's answers are right, so there is next to nothing to bootstrap from"
        )
    return None


def _too_dear(name: str, cost: Cost, budget: Budget) -> str | None:
    share = GENERATORS[name].most_of_budget
    if cost.step <= share * budget.lm_calls:
        return None
    return f"one step of it takes about {cost.step:.0f} LM calls, more than {share:.0%} of the {budget.name} budget"


def _reason(optimizer: str, taken: tuple[str, ...], profile: Profile, learned: Experience) -> str:
    names = ", ".join(taken)
    at = f"The program scores {profile.baseline:.0%} on {profile.probed} validation rows"
    who = f"all that can run ({names})" if optimizer == "race" else f"what the profile does not speak against ({names})"
    return f"{at}. In the pool is {who}. {learned.reason}".rstrip()


def _choice(
    settings: PoolSettings, budget: Budget, reason: str, alternatives: dict[str, str], forecasts: dict[str, Forecast]
) -> Choice:
    return Choice(
        settings=settings,
        budget=budget.name,
        lm_calls=budget.lm_calls,
        usd=budget.usd,
        predicted_lm_calls=budget.lm_calls,
        reason=reason,
        alternatives=alternatives,
        forecasts=forecasts,
    )
