"""Races: which arms go on, that a killed one ends as one that was not, and that a model is shared between arms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.finetuning import Arm, Evaluation, Progress, Raced, RowSet, TrainSettings, find_adapter, race, train
from dspy_toolkit.finetuning.child import _train
from dspy_toolkit.finetuning.job import job_of
from dspy_toolkit.finetuning.racing import Race, planned
from dspy_toolkit.finetuning.training import TrainingState
from dspy_toolkit.finetuning.values import Diverged
from dspy_toolkit.lm.models.weights import Weights
from tests.finetuning.conftest import make_rows
from tests.finetuning.test_process import training_process
from tests.lm.tiny import on_own_thread

Base = Callable[..., Weights]
SETTINGS = TrainSettings(epochs=6, rate=1e-2, batch_rows=4, layers=3, evaluations=1)
DATA = [RowSet(rows=tuple(make_rows(10)), val_rows=tuple(make_rows(4)))]
ARMS = [
    Arm(settings=SETTINGS.model_copy(update={"rate": 1e-6})),
    Arm(settings=SETTINGS),
    Arm(settings=SETTINGS.model_copy(update={"layers": 1, "rate": 1e-6})),
]


class Scripted:
    """An arm whose share of right rows after each step is written down."""

    def __init__(self, rights: list[float], state: TrainingState) -> None:
        self.rights, self.state = rights, state

    def run(self, *, until: int | None, deadline: float, progress: Any, save: Any) -> str:
        while self.state.step < (until or len(self.rights)):
            right = self.rights[self.state.step]
            if math.isnan(right):
                raise Diverged("The loss is no number.")
            self.state.step += 1
            self.state.val_losses.append(Evaluation(step=self.state.step, loss=1 - right, right=right, likely=right))
        return "rung" if until else "epochs"


def raced(rights: list[list[float]], rungs: list[float]) -> tuple[int, list[int], Race]:
    """(the winner, each arm's steps, the race) of arms with one step a pass."""
    states = [TrainingState({}, {}) for _ in rights]
    arms = [Arm(settings=TrainSettings(epochs=len(each), batch_rows=8)) for each in rights]
    made = Race(arms, [8] * len(arms), rungs, lambda arm: Scripted(rights[arm], states[arm]))  # pyright: ignore[reportArgumentType]
    winner = made.run()
    return winner, [state.step for state in states], made


def test_the_better_half_goes_on_from_each_rung() -> None:
    late, good, bad, worse = [0.1, 0.3, 0.9, 0.9], [0.4, 0.5, 0.6, 0.7], [0.3, 0.2, 0.1, 0.1], [0.0, 1.0, 1.0, 1.0]
    winner, steps, made = raced([worse, late, good, bad], [1, 2])
    assert (winner, steps) == (2, [1, 1, 4, 2])
    assert made.stopped == {0: "behind", 1: "behind", 2: "epochs", 3: "behind"}
    slow = [0.35, 0.4, 0.8, 0.9]
    assert raced([bad, slow, good], [1])[:2] == (1, [1, 4, 4]), "of three two go on, and the end decides"
    assert raced([good, good], [1])[:2] == (0, [4, 1]), "of equal ones the earlier"


def test_an_arm_that_diverges_is_out_and_the_others_go_on() -> None:
    good, other = [0.4, 0.5, 0.6, 0.7], [0.1, 0.1, 0.1, 0.1]
    winner, steps, made = raced([[0.9, math.nan], good, other], [1, 2])
    assert (winner, steps) == (1, [1, 4, 1])
    assert made.stopped == {0: "diverged", 1: "epochs", 2: "behind"}
    with pytest.raises(Diverged):
        raced([[math.nan], [math.nan]], [1])


@given(
    st.integers(1, 6).flatmap(
        lambda arms: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=4, max_size=4), min_size=arms, max_size=arms
        )
    )
)
def test_what_was_planned_is_what_is_trained(rights: list[list[float]]) -> None:
    winner, steps, made = raced(rights, [1, 2])
    assert sorted(steps) == sorted(planned(made.arms, made.rows, made.rungs))
    assert steps[winner] == 4


class Interrupted(Exception):
    pass


def here(weights: Weights, home: Path, stop_at: int | None = None) -> tuple[Raced, list[Progress]]:
    """The race in this process, which saves after each step and is cut off behind one."""
    job = job_of(weights, DATA, ARMS, (1, 2), home, "cpu").model_copy(update={"save_seconds": 0.0})
    job.place.mkdir(parents=True, exist_ok=True)
    told: list[Progress] = []

    def say(kind: str, value: Any) -> None:
        told.append(Progress.model_validate(value))
        if told[-1].step == stop_at:
            raise Interrupted

    return on_own_thread(lambda: _train(job, job.place, time.monotonic(), say)), told


@pytest.mark.usefixtures("with_gradients")
@pytest.mark.soak
def test_an_interrupted_race_ends_as_one_that_was_not(base: Base, tmp_path: Path) -> None:
    whole, told = here(base(), tmp_path / "whole")
    assert whole.winner == 1
    assert [(each.steps, each.stopped) for each in whole.arms] == [(6, "behind"), (18, "epochs"), (3, "behind")]
    assert told[-1].step == told[-1].steps == 27
    assert {progress.arm for progress in told} == {0, 1, 2}
    for step in (2, 8, 14, 19):
        with pytest.raises(Interrupted):
            here(base(), tmp_path / "cut", stop_at=step)
    cut, told = here(base(), tmp_path / "cut")
    assert told[0].step >= 19, "it goes on"
    assert cut.arms == whole.arms
    assert (cut.trained.adapter, cut.trained.tokens) == (whole.trained.adapter, whole.trained.tokens)
    left = {path.name for path in (tmp_path / "cut" / "checkpoints" / "finetuning").glob("*/*")}
    assert left == {"raced.json"}


@pytest.mark.system
def test_a_killed_race_ends_as_a_training_of_its_winner(base: Base, tmp_path: Path) -> None:
    weights = base()

    def kill(now: Progress) -> None:
        if now.step == 14:
            training_process().kill()

    def run(**options: Any) -> Raced:
        return race(weights, DATA, ARMS, (1, 2), tmp_path, lease=False, save_seconds=0, **options)

    with pytest.raises(TrainingError, match="was killed"):
        run(progress=kill)
    killed = run()
    assert run() == killed, "what is finished is not trained again"
    alone = train(weights, DATA[0].rows, DATA[0].val_rows, SETTINGS, tmp_path / "alone", lease=False)
    assert alone.adapter == killed.trained.adapter, "the others leave no trace in the winner"


def test_arms_may_read_other_rows(base: Base, tmp_path: Path) -> None:
    other = RowSet(rows=tuple(make_rows(10, rules="Sort it.")), val_rows=tuple(make_rows(4, rules="Sort it.")))
    arms = [ARMS[0], ARMS[1].model_copy(update={"rows": 1})]
    found = race(base(), [*DATA, other], arms, (1,), tmp_path, lease=False)
    assert found.winner == 1
    assert find_adapter(tmp_path, found.trained.adapter, base().sha256).origin.steps == 18
    best = found.trained.best
    assert best is not None and best.merit == max(each.merit for each in found.arms[1].val_losses)
    assert 0 <= best.likely <= 1 and best.right * 4 == round(best.right * 4)
