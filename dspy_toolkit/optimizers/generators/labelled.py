"""Labelled demonstrations: training rows with their labels, balanced over the answers. Making them needs no run of the
program.

Like DSPy's LabeledFewShot, drawn again and again in several numbers. For programs of one predictor: a row holds no answer for
the steps in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings

SIZES = (8, 4, 16)
"""Numbers of demonstrations, in turn."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Nothing beyond scoring."""
    if profile.predictors > 1:
        return Infeasible(
            reason=f"the rows hold no answers for the steps in between of a program with {profile.predictors} predictors"
        )
    return Cost(0, 0)


def candidates(shop: Workshop) -> Iterator[Made]:
    """Sets of each size in turn, without end."""
    for number in count():
        size = min(SIZES[number % len(SIZES)], len(shop.train))
        demos = balanced(shop.train, size, seed=shop.seed * 1_000_003 + number)
        base = shop.base(number // len(SIZES))
        yield Made(with_parts(base, None, [demos]), f"{size} labelled demonstrations, set {number + 1}")
