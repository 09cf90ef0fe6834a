"""Compiling a program as chosen: everything that runs an optimizer comes through here.

It sees the training and validation rows only, and returns a program's state as JSON and whether its prompt changed: a
candidate that is not better than the baseline on the same validation rows is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.choice import Choice, Optimizer
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.race.arm_run import ArmRun, ArmRunResult, run_arm, run_search
from dspy_toolkit.optimizers.race.race import ArmResult, RaceResult, race
from dspy_toolkit.optimizers.search.search import Progress, Trial
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.store import Frozen, Ref


class Compiled(Frozen):
    """What a compilation found."""

    optimizer: Optimizer
    program: Ref
    """The program's state (DSPy's JSON)."""
    changed: bool
    """Whether its prompt differs from that of the baseline."""
    val_mean: float = 0.0
    """Mean score of this program on the validation rows that candidates were compared on."""
    val_baseline: float = 0.0
    """Mean score of the baseline on the same rows."""
    usage: Usage = Usage()
    seconds: float
    """Wall time."""
    exhausted: bool = False
    """Whether the budget ran out before the search had ended."""
    trials: tuple[Trial, ...] = ()
    """Empty when nothing was scored: `val_mean` and `val_baseline` say nothing then."""
    arms: tuple[ArmResult, ...] = ()
    """The arms of a race, the winner first; empty otherwise."""

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.optimizer == "none":
            return "Nothing changed: there was nothing to gain."
        if not self.trials:
            return f"Nothing changed: {self.usage.lm_calls} LM calls were spent before the baseline was scored."
        if self.arms:
            won = self.arms[0]
            what = "Nothing changed: the baseline" if not self.changed else won.name
            return f"{what} won the race: {won.reason} The baseline: {self.val_baseline:.1%}."
        if not self.changed:
            best = max((t.val_mean for t in self.trials[1:]), default=None)
            tried = (
                "no candidate got as far as validation" if best is None else f"the best candidate reached {best:.1%}"
            )
            return f"Nothing changed: {tried}, the baseline {self.val_baseline:.1%} on validation."
        return f"{self.optimizer} went from {self.val_baseline:.1%} to {self.val_mean:.1%} on validation."


def compile_program(
    problem: Problem, choice: Choice, *, profile: Profile | None = None, progress: Progress | None = None
) -> Compiled:
    """Search for a better prompt within `choice.lm_calls` logical calls.

    Args:
        profile: the one that `choice` was made from; only a race needs it.

    Raises:
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed. A second call takes what was done from the cache of replies, and goes on.
    """
    began = time.monotonic()
    if choice.optimizer == "none":
        same = problem.store.save_json(state_of(problem.program))
        return Compiled(optimizer="none", program=same, changed=False, seconds=time.monotonic() - began)
    if choice.optimizer == "race":
        if profile is None:
            raise OptimizerError("A race needs the profile that it was chosen by.")

        spent, doing = 0, ""

        def tell(calls: int, what: str) -> None:
            nonlocal spent, doing
            spent, doing = calls, what
            if progress is not None:
                progress(calls, choice.lm_calls, what)

        def tell_arm(done: int, total: int, what: str) -> None:
            # An arm counts its own calls from its own beginning; what is shown is the race's.
            if progress is not None:
                progress(spent, choice.lm_calls, f"{doing}; {what}")

        def run(arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
            return [run_arm(problem, arm_run, tell_arm) for arm_run in arm_runs]

        return of_race(race(choice, profile, run, tell), time.monotonic() - began)
    search = run_search(problem, choice.optimizer, choice.settings, choice.lm_calls, choice.val_rows, progress)
    best = search.best or problem.program
    meter = search.meter
    return Compiled(
        optimizer=choice.optimizer,
        program=problem.store.save_json(state_of(best)),
        changed=prompt_of(best) != prompt_of(problem.program),
        val_mean=max(search.best_mean, 0.0),
        val_baseline=search.baseline,
        usage=meter.usage,
        seconds=time.monotonic() - began,
        exhausted=search.exhausted or meter.refused > 0,
        trials=tuple(search.trials),
    )


def of_race(found: RaceResult, seconds: float) -> Compiled:
    """The result of a race, as that of a compilation."""
    return Compiled(
        optimizer="race",
        program=found.program,
        changed=found.changed,
        val_mean=found.mean,
        val_baseline=found.baseline,
        usage=found.usage,
        seconds=seconds,
        trials=found.trials,
        arms=found.arms,
    )
