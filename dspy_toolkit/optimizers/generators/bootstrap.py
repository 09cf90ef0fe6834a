"""BootstrapFewShot: a program answers training rows until enough of its answers are right to be demonstrations.

Those come with their whole trace (augmented demonstrations); the rest of the prompt is filled with labelled rows. Each
candidate is made from rows of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

import dspy

from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings

BOOTSTRAPPED = 4
"""Demonstrations with a trace, at most; DSPy's default."""
DEMOS = 8
"""Demonstrations together; DSPy's default of 16 is more than small models gain from."""
MOST_ROWS = 48
"""Training rows that the program is run on for one candidate, at most."""
SPARE = 1.5
"""Rows to provide for each that is needed on average, since the pass rate is an estimate."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Rows are run until BOOTSTRAPPED answers are right."""
    rows = _rows(profile)
    needed = min(rows, BOOTSTRAPPED / max(profile.pass_rate, 1e-9))
    return Cost(needed * run_cost(profile), rows * run_cost(profile))


def candidates(shop: Workshop) -> Iterator[Made]:
    """One candidate after another, each from other rows."""
    size = _rows(shop.profile)
    for number in count():
        rows = balanced(shop.train, size, seed=shop.seed * 1_000_003 + number)
        shop.say(f"demonstrations from {len(rows)} rows")
        program = bootstrap(shop, shop.base(number), rows, BOOTSTRAPPED, DEMOS)
        if program is None:
            return
        yield Made(program, f"bootstrapped demonstrations, set {number + 1}")


def bootstrap(
    shop: Workshop, base: dspy.Module, rows: list[dspy.Example], bootstrapped: int, demos: int
) -> dspy.Module | None:
    """Run DSPy's BootstrapFewShot on `rows`.

    Args:
        base: the program whose demonstrations are replaced; not changed.
        rows: tried in this order.
        bootstrapped: demonstrations with a trace, at most.
        demos: demonstrations together, at most.

    Returns: `base` with the demonstrations; None when the budget ran out.
    """
    from dspy.teleprompt import BootstrapFewShot

    most = min(demos, len(rows))
    optimizer = BootstrapFewShot(
        metric=shop.float_metric,
        # Without a threshold any graded score above 0 would do for a demonstration.
        metric_threshold=PASS,
        max_bootstrapped_demos=min(bootstrapped, most),
        max_labeled_demos=most,
        teacher_settings={"lm": shop.teacher_lm},
        # A run that fails is one demonstration less, never the end of the search.
        max_errors=len(rows) + 1,
    )
    student = base.deepcopy()
    student._compiled = False
    compiled, _ = shop.attempt(
        optimizer.compile, student, teacher=shop.teacher(base, rows), trainset=rows, metric=shop.float_metric
    )
    if compiled is None:
        return None
    # Only the demonstrations are taken: DSPy resets the student it compiles, its language models included.
    return with_parts(base, None, [predictor.demos for predictor in compiled.predictors()])


def _rows(profile: Profile) -> int:
    needed = math.ceil(SPARE * BOOTSTRAPPED / max(profile.pass_rate, 1e-9))
    return min(profile.train, max(DEMOS, min(MOST_ROWS, needed)))
