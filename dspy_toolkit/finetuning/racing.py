"""Several trainings that go on or end by how they compare: successive halving over settings.

All arms are trained for a few passes. Where a rung is, those that answer more of the validation rows right (`Evaluation.merit`)
go on from where they are, half of them each time; what is left after the last rung goes to its end, and the best of that
wins (Karnin, Koren and Somekh 2013; over settings of trainings: Jamieson and Talwalkar 2016, arXiv:1502.07943). With one arm
this is a training.

Nothing is decided by anything but the arms' evaluations, which their states hold: a race that was killed and begins again
takes the same decisions. The deadline alone looks at the clock.

Not covered: models and files; both come as functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.finetuning.batches import steps_of_epoch, total_steps
from dspy_toolkit.finetuning.values import Arm, Diverged, Evaluation, Progress, Stopped

if TYPE_CHECKING:
    from dspy_toolkit.finetuning.training import Training, TrainingState


@dataclass(frozen=True)
class Leg:
    """A stretch that one arm is trained for."""

    arm: int
    until: int | None
    """A step; None: to its end."""


@dataclass
class Race:
    """One race. Its arms take turns."""

    arms: Sequence[Arm]
    rows: Sequence[int]
    """Of each arm, how many rows it trains on."""
    rungs: Sequence[float]
    """Passes over the rows at which arms are compared, ascending."""
    training: Callable[[int], Training]
    """An arm from where it is."""
    save: Callable[[int, TrainingState, bool], None] = lambda arm, state, last: None
    """Keep where an arm is, as `Training.run` says."""
    say: Callable[[Progress], None] = lambda progress: None
    states: dict[int, TrainingState] = field(default_factory=dict)
    """Where each arm is that has begun."""
    stopped: dict[int, Stopped] = field(default_factory=dict)
    """Why each arm that has begun does not go on."""
    _fault: TrainingError | None = None

    def run(self, deadline: float = math.inf) -> int:
        """Train until one has won; its arm.

        Args:
            deadline: of `time.monotonic`.

        Raises:
            TrainingError: every arm diverged.
        """
        alive = list(range(len(self.arms)))
        for rung in self.rungs:
            if len(alive) == 1:
                break
            legs = [Leg(arm, self._step(arm, rung)) for arm in alive]
            if self._late(legs, deadline):
                return self._best(alive)
            ranked = sorted(alive, key=lambda arm: (self._merit(arm, self._step(arm, rung)), -arm))
            going = kept(len(alive))
            for arm in ranked[:-going]:
                self.stopped[arm] = "diverged" if self.stopped[arm] == "diverged" else "behind"
            alive = sorted(ranked[-going:])
        self._late([Leg(arm, None) for arm in alive], deadline)
        return self._best(alive)

    def _late(self, legs: Sequence[Leg], deadline: float) -> bool:
        """Train these; whether the deadline ended it."""
        for leg in legs:
            if self.stopped.get(leg.arm) == "diverged":
                continue
            training = self.training(leg.arm)
            self.states[leg.arm] = training.state
            try:
                self.stopped[leg.arm] = training.run(
                    until=leg.until,
                    deadline=deadline,
                    progress=lambda now, arm=leg.arm: self.say(self._progress(now, arm)),
                    save=lambda state, last, arm=leg.arm: self.save(arm, state, last),
                )
            except Diverged as error:
                self.stopped[leg.arm], self._fault = "diverged", error
            if self.stopped[leg.arm] == "deadline":
                return True
        return False

    def _best(self, alive: Sequence[int]) -> int:
        able = [arm for arm, why in self.stopped.items() if why != "diverged"]
        begun = [arm for arm in alive if arm in able] or able
        if not begun and self._fault is not None:
            raise self._fault
        return max(begun, key=lambda arm: (self._merit(arm), -arm))

    def _merit(self, arm: int, until: float = math.inf) -> tuple[float, float]:
        """That of an arm that diverged is below all others."""
        if self.stopped.get(arm) == "diverged":
            return -1.0, -math.inf
        return merit(self.states[arm].val_losses, until)

    def _step(self, arm: int, rung: float) -> int:
        return step_of(rung, self.rows[arm], self.arms[arm])

    def _progress(self, now: Progress, arm: int) -> Progress:
        """Of all arms together."""
        if len(self.arms) == 1:
            return now
        steps = sum(planned(self.arms, self.rows, self.rungs))
        begun = list(self.states.values())
        step, seconds = (
            sum(state.step for state in begun),
            sum(state.step_seconds + state.val_seconds for state in begun),
        )
        left = max(steps - step, 0)
        return now.model_copy(
            update={
                "step": step, "steps": max(steps, step), "arm": arm,
                "seconds_left": left * seconds / step if step else None,
            }
        )  # fmt: skip


def merit(evaluations: Sequence[Evaluation], until: float = math.inf) -> tuple[float, float]:
    """The best one up to a step; of an arm without validation rows, nothing."""
    return max((each.merit for each in evaluations if each.step <= until), default=(0.0, -math.inf))


def kept(arms: int) -> int:
    """How many of so many arms go on from a rung."""
    return -(-arms // 2)


def step_of(rung: float, rows: int, arm: Arm) -> int:
    """The step at which an arm with so many rows has made `rung` passes."""
    return min(max(1, round(rung * steps_of_epoch(rows, arm.settings))), total_steps(rows, arm.settings))


def planned(arms: Sequence[Arm], rows: Sequence[int], rungs: Sequence[float]) -> list[int]:
    """Steps of each arm, if no patience ends one, and the later arms fall behind, of which the first are the likelier."""
    steps, alive = [0] * len(arms), len(arms)
    for rung in rungs:
        if alive == 1:
            break
        for arm in range(alive):
            steps[arm] = step_of(rung, rows[arm], arms[arm])
        alive = kept(alive)
    for arm in range(alive):
        steps[arm] = total_steps(rows[arm], arms[arm].settings)
    return steps
