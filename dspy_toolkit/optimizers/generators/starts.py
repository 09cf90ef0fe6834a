"""Programs from elsewhere as candidates: what is live, the best that earlier nights found, a program of another project.

They cost nothing but scoring, and are the first to be scored.
"""

from __future__ import annotations

from collections.abc import Iterator

from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators.ensembles import runs_of
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Nothing beyond scoring."""
    return Cost(0, 0)


def candidates(shop: Workshop) -> Iterator[Made]:
    """Each of the problem's starts, once."""
    for start in shop.problem.starts:
        yield Made(start.program.deepcopy(), start.label, runs=runs_of(start.program))
