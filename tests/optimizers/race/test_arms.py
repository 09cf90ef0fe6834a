"""A race of the real optimizers, on a model that is a function."""

from __future__ import annotations

from dataclasses import replace

import dspy
import pytest

from dspy_toolkit.errors import EngineFailed, OptimizerError
from dspy_toolkit.optimizers import Compiled
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS
from dspy_toolkit.optimizers.settings import LabelledSettings
from dspy_toolkit.optimizers.states import fill
from tests.optimizers.toys import Toy, by_demos, by_instruction, choice, engine_of, profile, program, rows

BUDGET = 1000


def raced(toy: Toy, lm_calls: int = BUDGET, **options: object) -> tuple[Compiled, int]:
    """(what a race found, calls that reached the model)."""
    toy.train, toy.val = rows(40), rows(80, start=100)
    connection = toy.connect()
    seen = {"train": 40, "val": 80}
    found = toy.compile(choice("race", lm_calls, **seen), connection, profile=profile(**seen), **options)
    return found, len(engine_of(connection).requests)


def test_a_model_that_has_to_be_told_is_told(toy: Toy) -> None:
    toy.knows = by_instruction
    found, asked = raced(toy)
    assert found.arms[0].name in ("mipro", "gepa")
    assert (found.optimizer, found.changed, found.val_mean) == ("race", True, 1.0)
    assert found.val_baseline < 0.5
    assert asked == found.usage.physical_calls <= found.usage.lm_calls <= BUDGET
    assert f"{found.arms[0].name} won the race: 100.0%" in found.summary
    assert {trial.arm for trial in found.trials} == set(OPTIMIZERS)
    better = fill(program(), toy.state(found))
    with toy.connect().context():
        assert better(text="the whale number 999").label == "blue"


def test_a_model_that_learns_from_demonstrations_gets_them_cheaply(toy: Toy) -> None:
    toy.knows = by_demos
    found, _ = raced(toy)
    assert found.arms[0].name == "labelled", "of equal arms the cheapest"
    assert found.val_mean == 1.0


def test_nothing_helps(toy: Toy) -> None:
    found, _ = raced(toy)
    assert not found.changed
    assert found.arms[0].name == "baseline"
    assert found.summary.startswith("Nothing changed: the baseline won the race")


def test_an_optimizer_that_fails_midway_is_left_behind_with_its_reason(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(search: object, settings: object) -> None:
        OPTIMIZERS["labelled"].search(search, LabelledSettings(candidates=1, val_rows=1))  # pyright: ignore[reportArgumentType]
        raise ValueError("optuna is not what it was")

    monkeypatch.setitem(OPTIMIZERS, "mipro", replace(OPTIMIZERS["mipro"], search=broken))
    toy.knows = by_instruction
    found, _ = raced(toy)
    failed = next(arm for arm in found.arms if arm.name == "mipro")
    assert (failed.verdict, "optuna is not what it was" in failed.reason) == ("failed", True)
    assert found.arms[0].name == "gepa"
    assert found.val_mean == 1.0


def test_a_model_that_fails_ends_the_race(toy: Toy) -> None:
    toy.before = lambda number: EngineFailed("The engine stopped.") if number >= 50 else None
    with pytest.raises(EngineFailed):
        raced(toy)


def test_a_metric_that_fails_on_the_program_as_it_is_ends_the_race(toy: Toy) -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float("nan") if example.label == "red" else 0.0

    with pytest.raises(Exception, match="returned NaN"):
        raced(toy, metric=metric)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_a_constant_metric_changes_nothing(toy: Toy, score: float) -> None:
    found, _ = raced(toy, metric=lambda example, prediction: score)
    assert not found.changed


def test_a_race_needs_its_profile(toy: Toy) -> None:
    with pytest.raises(OptimizerError, match="needs the profile"):
        toy.compile(choice("race", 400))


def test_a_resumed_race_asks_nothing_twice(toy: Toy) -> None:
    toy.knows = by_instruction
    toy.train, toy.val = rows(40), rows(80, start=100)
    seen = {"train": 40, "val": 80}
    chosen, connection = choice("race", BUDGET, **seen), toy.connect()
    first, second = (toy.compile(chosen, connection, profile=profile(**seen)) for _ in range(2))
    assert (second.program, second.arms, second.usage.lm_calls) == (first.program, first.arms, first.usage.lm_calls)
    assert second.usage.physical_calls == 0
