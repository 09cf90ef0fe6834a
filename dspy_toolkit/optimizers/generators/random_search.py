"""Random search (DSPy's BootstrapFewShotWithRandomSearch): BootstrapFewShot again and again, on small random sets of training
rows of random sizes.

A set is just as large as the prompt has room for demonstrations: rows that the program answers correctly come with their
whole trace, the others with their labels. The size bounds what a candidate costs, whatever the pass rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.bootstrap import BOOTSTRAPPED, bootstrap
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings

DEMOS = (6, 8, 4, 12)
"""Sizes of the sets, in turn."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Every row of a set is run, until BOOTSTRAPPED of them were right."""
    sizes = [min(size, profile.train) for size in DEMOS]
    return Cost(sum(sizes) / len(sizes) * run_cost(profile), max(sizes) * run_cost(profile))


def candidates(shop: Workshop) -> Iterator[Made]:
    """One candidate after another, each from other rows."""
    for number in count():
        size = min(DEMOS[number % len(DEMOS)], len(shop.train))
        # Other rows than those of `bootstrap` with the same number.
        rows = balanced(shop.train, size, seed=-(shop.seed * 1_000_003 + number) - 1)
        shop.say(f"demonstrations from {size} rows")
        program = bootstrap(shop, shop.base(number), rows, BOOTSTRAPPED, size)
        if program is None:
            return
        yield Made(program, f"{size} random demonstrations, set {number + 1}")
