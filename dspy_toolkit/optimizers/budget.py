"""What a compilation may spend, and what it does with it.

Budgets are stated in logical LM calls: a cached reply counts too, so that a run which resumes searches no further than
one that was never stopped. The sealed test is apart.
"""

from __future__ import annotations

import math
from typing import get_args

from dspy_toolkit.errors import OptimizerError, nearest
from dspy_toolkit.settings import BudgetName
from dspy_toolkit.store import Value


class Budget(Value):
    """Calls that one compilation may spend."""

    name: str
    lm_calls: int
    """Logical calls of the task model and the reflection model together."""


BUDGETS: dict[BudgetName, Budget] = {
    "light": Budget(name="light", lm_calls=300),
    "medium": Budget(name="medium", lm_calls=1_200),
    "heavy": Budget(name="heavy", lm_calls=5_000),
}


def find_budget(name: str) -> Budget:
    """The budget called `name`. Raises OptimizerError with the nearest names."""
    if name in get_args(BudgetName):
        return BUDGETS[name]  # pyright: ignore[reportArgumentType]
    raise OptimizerError(f"There is no budget {name!r}.{nearest(name, BUDGETS)} Correct --budget.")


def rows_for(share: float, budget: Budget, calls_per_run: float, available: int, least: int = 10) -> int:
    """How many validation rows one evaluation may use, so that it costs `share` of the budget.

    Args:
        share: of the budget, in (0, 1).
        calls_per_run: LM calls of one run of the program.
        available: rows there are.
        least: fewer than this say too little to choose by; they are used even when they cost more.
    """
    affordable = math.floor(share * budget.lm_calls / max(calls_per_run, 1))
    return min(available, max(least, affordable))
