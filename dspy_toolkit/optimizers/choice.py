"""What an optimizer says before it runs: its settings and their cost, or why it cannot run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dspy_toolkit.optimizers.settings import OptimizerSettings
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.profile import Profile

Optimizer = Literal["none", "race", "labelled", "bootstrap", "random", "mipro", "gepa"]


class Plan(Frozen):
    """Settings that fit a budget."""

    settings: OptimizerSettings
    predicted_lm_calls: int
    demos: float = 0.0
    """Demonstrations in a prompt, over all calls on average."""


class Forecast(Frozen):
    """What a plan is expected to cost."""

    lm_calls: int
    prompt_tokens: int
    """Cached prompts included."""
    seconds: float | None
    """On this machine, at the rate seen in the probe; None where no call of the probe was timed."""


class Infeasible(Frozen):
    """Why an optimizer cannot run on this program with this budget."""

    reason: str


class Choice(Frozen):
    """Which optimizer runs, how, and why."""

    settings: OptimizerSettings
    budget: str
    lm_calls: int
    """The budget, in logical calls."""
    predicted_lm_calls: int
    reason: str
    alternatives: dict[str, str]
    """The other optimizers, each with the reason why it was not taken."""
    forecasts: dict[str, Forecast] = {}
    """Optimizer → expected cost, for all that could run, the chosen one included."""

    @property
    def optimizer(self) -> Optimizer:
        """Its name."""
        return self.settings.optimizer

    @property
    def unexplained(self) -> Choice:
        """This choice without reasons and forecasts: the key of a cached compilation, which another wording or a slower
        machine must not invalidate.
        """
        return self.model_copy(update={"reason": "", "alternatives": {}, "forecasts": {}})

    @property
    def val_rows(self) -> int:
        """Validation rows that candidates are compared on; 0 when nothing is compiled."""
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
