"""SIMBA: on training rows where samples of the same program differ most, a good sample becomes a demonstration, or the
reflection model writes a rule from the good and the bad one.

A candidate is one step of `dspy.SIMBA` on a few rows, from the leader of the pool. It samples the program several times at
temperature 1, so it is dear; only larger budgets ask it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import fill, state_of

ROWS = 8
"""Training rows of a step; DSPy's default of 32 costs four times as much."""
SAMPLES = 3
"""Samples of each row, and programs that a step makes from them, less one; DSPy's default is 6."""
DEMOS = 4
"""Demonstrations that a predictor may hold; DSPy's default."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """A step: samples, its programs on the same rows, and the best two once more."""
    if profile.train < ROWS:
        return Infeasible(reason=f"it needs {ROWS} training rows, and there are {profile.train}")
    step = ROWS * (SAMPLES + (SAMPLES + 1) + 2) * run_cost(profile) + SAMPLES + 1
    return Cost(step, step)


def candidates(shop: Workshop) -> Iterator[Made]:
    """Step after step."""
    from dspy.teleprompt import SIMBA

    for number in count():
        rows = balanced(shop.train, ROWS, seed=shop.seed * 1_000_003 + number)
        shop.say(f"comparing samples on {ROWS} rows")
        optimizer = SIMBA(
            metric=shop.float_metric,
            bsize=ROWS,
            num_candidates=SAMPLES,
            max_steps=1,
            max_demos=DEMOS,
            prompt_model=shop.reflection_lm,
            num_threads=shop.problem.threads,
        )
        compiled, _ = shop.attempt(
            optimizer.compile,
            shop.student(leading=True),
            trainset=rows,
            seed=shop.seed * 1_000 + number,
            metric=shop.float_metric,
        )
        if compiled is None:
            return
        yield Made(fill(shop.problem.program.deepcopy(), state_of(compiled)), f"samples compared, step {number + 1}")
