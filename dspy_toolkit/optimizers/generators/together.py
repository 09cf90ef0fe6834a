"""BetterTogether: prompt, then weights, then prompt again (Soylu, Potts and Khattab 2024, arXiv:2407.10930).

What leads the pool has the best prompt so far. An adapter is trained under its instructions and formats, without its
demonstrations, which training replaces. Then the prompt has another turn, on the adapter: the labels scored, the leader's own
demonstrations, and labelled ones. Where an adapter was trained under these instructions before, it is taken.
Whenever another prompt leads, all of it begins again.

DSPy's own `BetterTogether` is not what runs here: it goes on in silence where a step failed, and its weights' turn learns from the
model's own traces alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import dspy

from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators import finetune, trainings
from dspy_toolkit.optimizers.generators.training_rows import bare, row_set
from dspy_toolkit.optimizers.generators.trainings import Plan
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import WAIT, Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import prompt_of
from dspy_toolkit.store import digest

DEMOS = (0, 4, 8)
"""Numbers of labelled demonstrations; each set begins with the one before."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """That of the smallest training; a step of it gives several candidates."""
    found = finetune.cost(profile, settings)
    return found if isinstance(found, Infeasible) else Cost(found.step / 3, found.step)


def candidates(shop: Workshop) -> Iterator[Made | None]:
    """Of whatever leads: weights, then prompts on them."""
    given: set[str] = set()
    while True:
        leader, label = shop.ground, "the program"
        if shop.pool is not None and shop.pool.best is not shop.pool.baseline:
            leader, label = shop.leader, shop.pool.best.label
        program = bare(leader)
        prompt = digest(prompt_of(program))
        if prompt not in given:
            given.add(prompt)
            yield from _on_weights(shop, leader, program, label)
        yield WAIT


def _on_weights(shop: Workshop, leader: dspy.Module, program: dspy.Module, label: str) -> Iterator[Made]:
    prompt, trained = digest(prompt_of(program)), f"{label}, then fine-tuned"
    if (known := shop.adapters.get(prompt)) is not None:
        made = finetune.on_adapter(program, known)
    else:
        data = row_set(shop, program)
        plan = _plan(shop)
        if data is None or len(data.rows) < finetune.LEAST_ROWS or plan is None:
            return
        found = finetune.adapted(shop, program, data, plan, "an adapter under the best prompt")
        if found is None:
            return
        made, how = found
        yield Made(made, f"{label}, then {how}")
    if shop.profile.labels:
        yield Made(finetune.scored(made), f"{trained}, labels scored")
    own = [list(predictor.demos) for predictor in leader.predictors()]
    if any(own):
        yield Made(with_parts(made, None, own), f"{trained}, with its demonstrations")
    if not shop.profile.labelled:
        return  # a row is no demonstration of a step
    cases = balanced(shop.train, min(DEMOS[-1], len(shop.train)), seed=shop.seed)
    for before, most in pairwise(DEMOS):
        if len(cases) > before:
            yield Made(with_parts(made, None, [cases[:most]]), f"{trained}, {len(cases[:most])} demonstrations")


def _plan(shop: Workshop) -> Plan | None:
    """The settings that won under another prompt, where there are such; else what the budget has room for."""
    if not shop.winners:
        return trainings.best_plan(shop)
    plan = Plan((next(iter(shop.winners.values())),))
    return plan if trainings.calls(shop.profile, plan) <= trainings.room(shop) else None
