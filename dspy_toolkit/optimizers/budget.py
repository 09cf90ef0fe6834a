"""What a compilation may spend.

Budgets are stated in logical LM calls: a cached reply counts too, so that a run which resumes searches no further than
one that was never stopped. A budget stated in minutes or dollars is turned into calls by what a call took or cost in the
probe; one in dollars is a hard limit besides. The sealed test is not part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.settings import BUDGET_NAMES, parse_budget
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.profile import Profile


class Budget(Frozen):
    """Calls that one compilation may spend."""

    name: str
    lm_calls: int
    """Logical calls of the task model and the reflection model together."""
    seconds: float | None = None
    """A budget stated in time; `lm_calls` is then an upper limit."""
    usd: float | None = None
    """A budget stated in dollars; `lm_calls` is then an upper limit."""

    def within(self, profile: Profile) -> Budget:
        """This budget in calls, on a model that takes and costs what the probe saw.

        Raises:
            OptimizerError: the budget is a time or in dollars, and the probe saw none; or not one call fits.
        """
        if self.seconds is not None:
            return self._at(
                self.seconds,
                profile.seconds_per_call,
                "is a time",
                "timed no call",
                f"{profile.seconds_per_call:.2f} s",
            )
        if self.usd is not None:
            return self._at(
                self.usd, profile.usd_per_call, "is in dollars", "saw no price", f"{profile.usd_per_call:.4f} dollars"
            )
        return self

    def _at(self, whole: float, each: float, stated: str, missing: str, said: str) -> Budget:
        if each <= 0:
            raise OptimizerError(
                f"The budget {self.name} {stated}, and the probe {missing}: its replies came from the cache, or the model "
                "has none. State it in LM calls, such as --budget 600."
            )
        if (calls := min(self.lm_calls, int(whole / each))) < 1:
            raise OptimizerError(
                f"The budget {self.name} is less than one LM call, which takes {said} here. Give more."
            )
        return self.model_copy(update={"lm_calls": calls})


BUDGETS = {name: Budget(name=name, lm_calls=calls) for name, calls in BUDGET_NAMES.items()}
MOST_CALLS = 1_000_000
"""The upper limit of a budget stated in time or dollars, however quick or cheap the model is."""


def find_budget(name: str) -> Budget:
    """The budget called `name`: `light`, `medium`, `heavy`, LM calls (`800`), a time (`15m`, `2h`) or dollars (`2.50usd`).

    Raises:
        OptimizerError: it is none of these.
    """
    if name in BUDGETS:
        return BUDGETS[name]
    try:
        stated = parse_budget(str(name))
    except ValueError as error:
        raise OptimizerError(f"{error}. Correct --budget.") from None
    return Budget(name=name, lm_calls=stated.calls or MOST_CALLS, seconds=stated.seconds, usd=stated.usd)
