"""Which optimizer, with a written reason: a pure function of the profile, the budget and like runs.

The order of preference follows what was published (GEPA before MIPROv2 before BootstrapFewShot where a model can
reflect: arXiv 2507.19457) and what a profile rules out: without a usable reflector the two that write instructions have
nothing to write with. Where there are enough like runs their gains decide the order (`experience`), and a profile still
rules out what it rules out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from dspy_toolkit.errors import OptimizerError, nearest
from dspy_toolkit.optimizers import bootstrap, gepa, mipro
from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.experience import prefer
from dspy_toolkit.optimizers.plan import Choice, Impossible, Optimizer, Plan
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.settings import OptimizerName

if TYPE_CHECKING:
    from dspy_toolkit.history import PastRun

PERFECT = 0.995
"""A baseline from which there is nothing to gain."""
PLANNERS = {"bootstrap": bootstrap.plan, "mipro": mipro.plan, "gepa": gepa.plan}


def select(profile: Profile, optimizer: str, budget: Budget, history: Iterable[PastRun] = ()) -> Choice:
    """Choose.

    Args:
        optimizer: `auto`, or the one to take.
        budget: what it may spend.
        history: like runs (`experience.alike`), in any order.

    Raises:
        OptimizerError: no such optimizer, or it cannot run with this budget (or none can).
    """
    check_optimizer(optimizer)
    plans = {name: planner(profile, budget) for name, planner in PLANNERS.items()}
    if optimizer != "auto":
        plan = plans[optimizer]
        if isinstance(plan, Impossible):
            raise OptimizerError(
                f"{optimizer} cannot run here: {plan.reason}. Take a larger --budget or --optimizer auto."
            )
        others = {name: "not asked for" for name in plans if name != optimizer}
        return _choice(optimizer, plan, budget, f"{optimizer} was asked for.", others)
    if profile.baseline >= PERFECT:
        why = f"The program scores {profile.baseline:.0%} as it is: there is nothing to gain."
        return Choice(
            optimizer="none",
            settings={},
            budget=budget.name,
            lm_calls=budget.lm_calls,
            predicted_lm_calls=0,
            reason=why,
            alternatives=dict.fromkeys(plans, "nothing to gain"),
        )
    return _best(profile, plans, budget, history)


def check_optimizer(name: str) -> None:
    """Raise OptimizerError, with the nearest names, unless `name` is `auto` or an optimizer."""
    if name not in (known := get_args(OptimizerName)):
        raise OptimizerError(f"There is no optimizer {name!r}.{nearest(name, known)} Correct --optimizer.")


def _best(profile: Profile, plans: dict[str, Plan | Impossible], budget: Budget, history: Iterable[PastRun]) -> Choice:
    against: dict[str, str] = {}
    order, learned = prefer(("gepa", "mipro", "bootstrap"), history)
    for name in order:
        plan = plans[name]
        if isinstance(plan, Impossible):
            against[name] = plan.reason
        elif objection := _objection(name, profile):
            against[name] = objection
        else:
            rest = {other: f"{name} comes first" for other in plans if other != name and other not in against}
            return _choice(name, plan, budget, f"{_praise(name, profile)} {learned}".rstrip(), {**against, **rest})
    why = "; ".join(f"{name}: {reason}" for name, reason in against.items())
    raise OptimizerError(f"No optimizer can run here ({why}). Add rows, or take a larger --budget.")


def _objection(name: str, profile: Profile) -> str | None:
    if name in ("gepa", "mipro") and not profile.reflector_ok:
        return f"the reflection model cannot write a usable instruction: {profile.reflector_note}"
    if name == "gepa" and not profile.feedback:
        return "the metric gives no feedback to reflect on"
    return None


def _praise(name: str, profile: Profile) -> str:
    at = f"The program scores {profile.baseline:.0%} on {profile.probed} validation rows"
    if name == "gepa":
        return f"{at}; the metric explains itself and the reflection model can rewrite the instruction."
    if name == "mipro":
        return f"{at}; the reflection model can write instructions, but the metric gives no feedback to reflect on."
    if profile.pass_rate > 0:
        return f"{at}, and {profile.pass_rate:.0%} of its answers can serve as demonstrations."
    return f"{at}; none of its answers can serve as a demonstration, but labelled rows can."


def _choice(name: str, plan: Plan, budget: Budget, reason: str, alternatives: dict[str, str]) -> Choice:
    optimizers: dict[str, Optimizer] = {"bootstrap": "bootstrap", "mipro": "mipro", "gepa": "gepa"}
    return Choice(
        optimizer=optimizers[name],
        settings=plan.settings,
        budget=budget.name,
        lm_calls=budget.lm_calls,
        predicted_lm_calls=plan.predicted_lm_calls,
        reason=reason,
        alternatives=alternatives,
    )
