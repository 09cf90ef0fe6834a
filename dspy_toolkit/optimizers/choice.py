"""What is said before a search runs: which generators take part, what it will cost, or why something cannot run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.optimizers.settings import SearchSettings
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.profile import Profile


class Forecast(Frozen):
    """What an optimizer would do with the whole budget."""

    lm_calls: int
    candidates: int
    """Candidates that the calls are enough for, about."""
    prompt_tokens: int
    """Cached prompts included."""
    seconds: float | None
    """On this machine, at the rate seen in the probe; None where no call of the probe was timed."""
    usd: float | None = None
    """At the prices seen in the probe; None where the model has none."""


class Infeasible(Frozen):
    """Why an optimizer cannot run on this program with this budget."""

    reason: str


class Choice(Frozen):
    """What is searched, how, and why."""

    settings: SearchSettings
    budget: str
    lm_calls: int
    """The budget, in logical calls."""
    usd: float | None = None
    """The budget in dollars, where it was stated so: no call begins that could exceed it."""
    predicted_lm_calls: int
    reason: str
    alternatives: dict[str, str]
    """The optimizers that take no part, each with the reason."""
    forecasts: dict[str, Forecast] = {}
    """Optimizer → what it would cost, for all that could run, those taken included."""

    @property
    def optimizer(self) -> str:
        """`none`, or what was asked for."""
        return self.settings.optimizer

    @property
    def unexplained(self) -> Choice:
        """This choice without reasons and forecasts: the key of a cached compilation, which another wording or a slower
        machine must not invalidate.
        """
        return self.model_copy(update={"reason": "", "alternatives": {}, "forecasts": {}})

    @property
    def val_rows(self) -> int:
        """Validation rows that the search reads; 0 when nothing is compiled."""
        return self.settings.val_rows


def unfit(profile: Profile) -> str | None:
    """Why no optimizer can run at all; None when one may."""
    if profile.train == 0:
        return "there are no training rows to learn from"
    if profile.val == 0:
        return "there are no validation rows to choose by"
    return None if profile.calls_per_run > 0 else "the program asks no language model"


def run_cost(profile: Profile) -> float:
    """LM calls to plan for one run of the program: at least one, though some runs may need none."""
    return max(profile.calls_per_run, 1.0)
