"""Formats as candidates: the baseline with its fields written in other ways, then the same of whatever leads.

They cost nothing but scoring, the plain one is the cheapest prompt there is, and all other generators build on the format that
scored best (`Workshop.ground`): so they are the first to be scored.
"""

from __future__ import annotations

from collections.abc import Iterator

import dspy

from dspy_toolkit.lm.adapter import FORMATS
from dspy_toolkit.lm.formats import CHAT, FORMAT_NAMES, FormatName, format_of
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import WAIT, Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import prompt_of, signature_of
from dspy_toolkit.store import digest

ORDER: tuple[FormatName, ...] = ("plain", "json", "xml", "chat")
"""The fewest words first."""
assert set(ORDER) == set(FORMAT_NAMES)


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Nothing beyond scoring."""
    return Cost(0, 0)


def candidates(shop: Workshop) -> Iterator[Made | None]:
    """The baseline in each format that it is not in; then, whenever another candidate leads, that one."""
    local = shop.lm.model.startswith(PREFIX)
    given = {digest(prompt_of(shop.problem.program))}
    program, whose = shop.problem.program, "the program"
    while True:
        for name in ORDER:
            made = in_format(program, shop.problem.program, name, local=local)
            if (prompt := digest(prompt_of(made))) not in given:
                given.add(prompt)
                if program is shop.problem.program:
                    shop.grounds.append(made)
                yield Made(made, f"{whose} in the format {name}")
        yield WAIT
        if shop.pool is not None:
            program, whose = shop.leader, shop.pool.best.label


def in_format(program: dspy.Module, original: dspy.Module, name: FormatName, *, local: bool) -> dspy.Module:
    """A copy of `program` in a format; a predictor that has no grammar in it keeps its own.

    Args:
        original: the program that the search began with: a format that it had by default is written as it was there.
        local: whether an MLX model runs it.
    """
    made = program.deepcopy()
    own = {key: format_of(predictor) for key, predictor in original.named_predictors()}
    for key, predictor in made.named_predictors():
        if local and name != CHAT and FORMATS[name].grammar(signature_of(predictor)) is None:
            continue
        pull(predictor, format=None if local and name == CHAT and own.get(key) is None else name)
    return made
