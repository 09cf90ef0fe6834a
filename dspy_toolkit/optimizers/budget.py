"""What a compilation may spend.

Budgets are stated in logical LM calls: a cached reply counts too, so that a run which resumes searches no further than
one that was never stopped. A budget stated in minutes is turned into calls by the seconds that a call took in the
probe. The sealed test is not part of it.
"""

from __future__ import annotations

import math

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.settings import BUDGET_NAMES, parse_budget
from dspy_toolkit.store import Frozen


class Budget(Frozen):
    """Calls that one compilation may spend."""

    name: str
    lm_calls: int
    """Logical calls of the task model and the reflection model together."""
    seconds: float | None = None
    """A budget stated in time; `lm_calls` is then an upper limit."""

    def within(self, seconds_per_call: float) -> Budget:
        """This budget in calls, on a model that takes `seconds_per_call` (many calls at once; 0 where it is not known).

        Raises:
            OptimizerError: the budget is a time, and the probe timed no call; or not one call fits.
        """
        if self.seconds is None:
            return self
        if seconds_per_call <= 0:
            raise OptimizerError(
                f"The budget {self.name} is a time, and the probe timed no call: its replies came from the cache. "
                "State it in LM calls, such as --budget 600."
            )
        calls = min(self.lm_calls, int(self.seconds / seconds_per_call))
        if calls < 1:
            raise OptimizerError(
                f"The budget {self.name} is less than one LM call, which takes {seconds_per_call:.2f} s here. Give more."
            )
        return self.model_copy(update={"lm_calls": calls})


BUDGETS = {name: Budget(name=name, lm_calls=calls) for name, calls in BUDGET_NAMES.items()}
MOST_CALLS = 1_000_000
"""The upper limit of a budget stated in time, however quick the model is."""


def find_budget(name: str) -> Budget:
    """The budget called `name`: `light`, `medium`, `heavy`, LM calls (`800`) or a time (`15m`, `2h`).

    Raises:
        OptimizerError: it is none of these.
    """
    if name in BUDGETS:
        return BUDGETS[name]
    try:
        calls, seconds = parse_budget(name)
    except ValueError as error:
        raise OptimizerError(f"{error}. Correct --budget.") from None
    return Budget(name=name, lm_calls=MOST_CALLS if calls is None else calls, seconds=seconds)


def rows_for(share: float, budget: Budget, calls_per_run: float, available: int, least: int = 10) -> int:
    """How many validation rows one evaluation may use, so that it costs `share` of the budget.

    Args:
        share: of the budget, in (0, 1).
        calls_per_run: LM calls of one run of the program.
        available: all validation rows.
        least: with fewer rows a choice is luck; as many are used even when they cost more than `share`.
    """
    affordable = math.floor(share * budget.lm_calls / max(calls_per_run, 1))
    return min(available, max(least, affordable))
