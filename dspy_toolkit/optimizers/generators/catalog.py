"""The generators by name: what their candidates cost, what each would do with a budget, and their candidates.

A generator gives its candidates in a fixed order for a seed, whatever the budget: a larger one goes on where a smaller one
ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from dspy_toolkit.errors import MetricError, OptimizerError, ProgramError, RequestRefused, ToolkitError
from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Forecast, Infeasible, run_cost, unfit
from dspy_toolkit.optimizers.generators import (
    bootstrap,
    ensembles,
    finetune,
    formats,
    gepa,
    knn,
    label_weights,
    labelled,
    mipro,
    random_search,
    simba,
    starts,
    together,
)
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Family, Made
from dspy_toolkit.optimizers.pool.policy import climbing
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.user_code import describe_error

log = logging.getLogger(__name__)

AT_FAULT = (MetricError, OptimizerError, ProgramError, RequestRefused)
"""The toolkit's errors that a generator itself brings about: a prompt that does not fit the model among them."""
START = "start"
"""The name of the generator that gives programs from elsewhere; it is always there."""


@dataclass(frozen=True)
class GeneratorSpec:
    """One generator of candidates."""

    name: str
    title: str
    """For people."""
    cost: Callable[[Profile, PoolSettings], Cost | Infeasible]
    candidates: Callable[[Workshop], Iterator[Made | None]]
    urgent: int = 0
    """Of its candidates, how many come before those of all others: what the others build on (every start, the plain format), and
    an adapter, which costs much and gains most.
    """
    most_of_budget: float = 1 / 3
    """The share of a budget that one step of it may cost where there are others."""
    last: bool = False
    """Whether its candidates are made of those of the others."""
    beside: tuple[str, ...] = ()
    """Generators that share its pool where it is asked for by name, since it needs what they make."""
    at_home: bool = False
    """Whether its candidates need more than their state, which workers with another home lack: adapters."""


GENERATORS = {
    spec.name: spec
    for spec in (
        GeneratorSpec(
            "finetune", "fine-tuning", finetune.cost, finetune.candidates, urgent=1, most_of_budget=2 / 3, at_home=True
        ),
        GeneratorSpec(
            "together",
            "BetterTogether",
            together.cost,
            together.candidates,
            most_of_budget=2 / 3,
            beside=("labelled", "formats"),
            at_home=True,
        ),
        GeneratorSpec("gepa", "GEPA", gepa.cost, gepa.candidates),
        GeneratorSpec("mipro", "MIPROv2", mipro.cost, mipro.candidates),
        GeneratorSpec("simba", "SIMBA", simba.cost, simba.candidates),
        GeneratorSpec("random", "random search", random_search.cost, random_search.candidates),
        GeneratorSpec("bootstrap", "BootstrapFewShot", bootstrap.cost, bootstrap.candidates),
        GeneratorSpec("labelled", "labelled demonstrations", labelled.cost, labelled.candidates),
        GeneratorSpec("knn", "nearest rows as demonstrations", knn.cost, knn.candidates),
        GeneratorSpec("labels", "label weights", label_weights.cost, label_weights.candidates),
        GeneratorSpec("formats", "other formats", formats.cost, formats.candidates, urgent=1),
    )
}
"""From the dearest candidates to the cheapest."""

ENSEMBLE = "ensemble"
"""The name of the generator that joins the candidates of others; it is there where there are several."""
_STARTS = GeneratorSpec(START, "programs from elsewhere", starts.cost, starts.candidates, urgent=1_000)
_ENSEMBLES = GeneratorSpec(ENSEMBLE, "ensembles", ensembles.cost, ensembles.candidates, last=True)


def plan(name: str, profile: Profile, settings: PoolSettings, budget: Budget) -> Cost | Infeasible:
    """What candidates of the generator `name` cost; or why the budget cannot have one."""
    if reason := unfit(profile):
        return Infeasible(reason=reason)
    cost = GENERATORS[name].cost(profile, settings)
    if isinstance(cost, Infeasible):
        return cost
    # The baseline and one candidate on the first rung.
    least = cost.step + 2 * settings.rungs[0] * run_cost(profile)
    if least > budget.lm_calls:
        return Infeasible(
            reason=f"its first candidate takes about {least:.0f} LM calls, and the {budget.name} budget has {budget.lm_calls}"
        )
    return cost


def forecast(cost: Cost, profile: Profile, settings: PoolSettings, budget: Budget) -> Forecast:
    """What a generator with candidates of that cost does with all of `budget`."""
    run, rungs = run_cost(profile), settings.rungs
    each = cost.each + (rungs[0] + climbing(rungs)) * run
    candidates = max(int((budget.lm_calls - rungs[-1] * run) / each), 1)
    calls = budget.lm_calls
    tokens = (profile.prompt_tokens / run + DEMOS * profile.demo_tokens) * calls
    return Forecast(
        lm_calls=calls,
        candidates=candidates,
        prompt_tokens=round(tokens),
        seconds=profile.seconds_per_call * calls if profile.seconds_per_call else None,
        usd=profile.usd_per_call * calls if profile.usd_per_call else None,
    )


DEMOS = 4
"""Demonstrations in a prompt, over all calls on average."""


def family(name: str, shop: Workshop) -> Family:
    """The generator `name` at work. Its own faults end it; a model that fails ends the search.

    Its candidates raise ToolkitError where the model failed.
    """
    spec = {START: _STARTS, ENSEMBLE: _ENSEMBLES}.get(name) or GENERATORS[name]
    cost = spec.cost(shop.profile, shop.settings)
    if isinstance(cost, Infeasible):
        raise OptimizerError(f"{name} cannot run here: {cost.reason}.")

    def guarded() -> Generator[Made | None, None, None]:
        try:
            yield from spec.candidates(shop)
        except Exception as error:  # isolation boundary: one generator of a pool
            # A model that fails would fail every generator, and may be a transient error.
            if isinstance(error, ToolkitError) and not isinstance(error, AT_FAULT):
                raise
            log.warning("The generator %s failed: %s", name, describe_error(error))
            made.ended = f"It failed: {describe_error(error)}"

    prior = shop.settings.priors.get(name, 0.0)
    made = Family(name, guarded(), cost, prior=prior, urgent=spec.urgent, last=spec.last)
    return made
