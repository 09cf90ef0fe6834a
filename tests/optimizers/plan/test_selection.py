"""Which generators fill the pool, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Budget, Choice, Profile, select
from dspy_toolkit.optimizers.generators.catalog import GENERATORS
from dspy_toolkit.optimizers.settings import PoolSettings
from tests.optimizers.toys import profile as toy_profile

LIGHT = Budget(name="light", lm_calls=300)
LARGE = {"train": 100, "val": 60}


def profile(**changes: Any) -> Profile:
    """Of a choice, on a model that an engine of this machine runs and trains."""
    own: dict[str, Any] = {"training_note": "", "training_seconds": 0.5, "labels": 3}
    return toy_profile(**own | changes)


def taken(choice: Choice) -> tuple[str, ...]:
    assert isinstance(choice.settings, PoolSettings)
    return choice.settings.generators


def test_a_model_that_can_reflect_and_a_metric_that_explains_let_everybody_in() -> None:
    choice = select(profile(**LARGE), "auto", LIGHT)
    assert (choice.optimizer, taken(choice)) == ("auto", tuple(GENERATORS))
    assert choice.reason.startswith("The program scores 20% on 24 validation rows. In the pool is what the profile")
    assert choice.alternatives == {}


def test_without_feedback_gepa_stays_out() -> None:
    choice = select(profile(feedback=False), "auto", LIGHT)
    assert choice.alternatives["gepa"] == "the metric gives no feedback to reflect on"


def test_a_weak_reflector_keeps_out_what_lives_on_reflection() -> None:
    weak = {"reflector_ok": False, "reflector_note": "it gave the old instruction back"}
    choice = select(profile(**weak), "auto", LIGHT)
    assert "cannot write a usable instruction: it gave the old instruction back" in choice.alternatives["gepa"]
    assert set(choice.alternatives) == {"gepa", "mipro", "simba"}


def test_a_race_differs_from_auto_in_who_enters_alone() -> None:
    seen = profile(reflector_ok=False, feedback=False, pass_rate=0.0, **LARGE)
    auto, race = select(seen, "auto", LIGHT), select(seen, "race", LIGHT)
    assert set(taken(auto)) == {"labelled", "knn", "formats", "labels", "finetune", "together"}
    assert set(taken(race)) == set(GENERATORS)
    assert auto.settings.model_copy(update={"generators": (), "optimizer": "race"}) == race.settings.model_copy(
        update={"generators": ()}
    )


def test_a_pass_rate_near_zero_rules_out_bootstrapping() -> None:
    choice = select(profile(pass_rate=0.0, baseline=0.0), "auto", LIGHT)
    for name in ("bootstrap", "random"):
        assert "0% of the program's answers are right, so there is next to nothing" in choice.alternatives[name]


def test_a_program_of_several_steps_has_no_labelled_demonstrations() -> None:
    choice = select(profile(predictors=2), "race", Budget(name="b", lm_calls=900))
    assert "steps in between" in choice.alternatives["labelled"]


def test_one_whose_step_is_a_large_part_of_the_budget_is_left_out_of_a_race() -> None:
    choice = select(profile(**LARGE), "race", Budget(name="small", lm_calls=150))
    assert "one step of it takes about" in choice.alternatives["simba"]
    assert taken(select(profile(**LARGE), "simba", Budget(name="small", lm_calls=150))) == ("simba",)


def test_a_perfect_program_is_left_alone() -> None:
    choice = select(profile(baseline=1.0, pass_rate=1.0), "auto", LIGHT)
    assert (choice.optimizer, choice.val_rows, choice.predicted_lm_calls) == ("none", 0, 0)
    assert "nothing to gain" in choice.reason


def test_a_perfect_program_is_compiled_when_asked_for() -> None:
    assert select(profile(baseline=1.0, pass_rate=1.0), "bootstrap", LIGHT).optimizer == "bootstrap"


@pytest.mark.parametrize("name", GENERATORS)
def test_an_optimizer_that_was_asked_for_is_taken_alone(name: str) -> None:
    choice = select(profile(reflector_ok=False, feedback=False), name, LIGHT)
    assert (choice.optimizer, taken(choice)) == (name, (name, *GENERATORS[name].beside))
    assert choice.reason == f"{name} was asked for."
    assert set(choice.alternatives) == set(GENERATORS) - {name, *GENERATORS[name].beside}
    assert set(choice.forecasts) == set(GENERATORS)


@pytest.mark.parametrize("name", GENERATORS)
def test_one_that_was_asked_for_and_cannot_run_is_an_error(name: str) -> None:
    with pytest.raises(OptimizerError, match=f"{name} cannot run here: .* LM calls.*larger --budget or --optimizer"):
        select(profile(), name, Budget(name="tiny", lm_calls=10))


def test_none_can_run() -> None:
    with pytest.raises(
        OptimizerError, match=r"No optimizer can run here \(.*gepa: .*; mipro: .*; labelled: .*Add rows"
    ):
        select(profile(), "auto", Budget(name="tiny", lm_calls=5))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("random", {"train": 0}, "no training rows"),
        ("mipro", {"val": 0}, "no validation rows"),
        ("mipro", {"train": 1}, "at least 2 training rows, and there are 1"),
        ("simba", {"train": 7}, "it needs 8 training rows, and there are 7"),
        ("gepa", {"calls_per_run": 0.0}, "asks no language model"),
    ],
)
def test_what_cannot_run_says_why(name: str, changes: dict[str, float], reason: str) -> None:
    with pytest.raises(OptimizerError, match=f"{name} cannot run here: .*{reason}"):
        select(profile(**changes), name, LIGHT)


@pytest.mark.parametrize(("typed", "meant"), [("bootsrap", "bootstrap"), ("mipro2", "mipro"), ("GEPA", "gepa")])
def test_a_typo_is_told_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(OptimizerError, match=f"no optimizer '{typed}'.*{meant}"):
        select(profile(), typed, LIGHT)


def test_a_forecast_in_candidates_tokens_seconds_and_dollars() -> None:
    seen = profile(prompt_tokens=100.0, demo_tokens=20.0, seconds_per_call=0.5, usd_per_call=0.001, **LARGE)
    cost = select(seen, "labelled", LIGHT).forecasts["labelled"]
    assert (cost.lm_calls, cost.prompt_tokens, cost.seconds) == (300, 300 * 180, 150.0)
    assert cost.usd == pytest.approx(0.3)
    dear = select(profile(calls_per_run=4.0, **LARGE), "labelled", LIGHT).forecasts["labelled"]
    assert 1 <= dear.candidates < cost.candidates
    assert select(profile(seconds_per_call=0.0), "labelled", LIGHT).forecasts["labelled"].seconds is None


@settings(max_examples=100)
@given(
    baseline=st.floats(0, 1),
    train=st.integers(0, 400),
    val=st.integers(1, 200),
    feedback=st.booleans(),
    reflector=st.booleans(),
    lm_calls=st.sampled_from([20, 100, 300, 1200, 5000]),
    optimizer=st.sampled_from(["auto", "race"]),
)
def test_a_choice_is_a_function_of_its_arguments_and_says_why(
    baseline: float, train: int, val: int, feedback: bool, reflector: bool, lm_calls: int, optimizer: str
) -> None:
    seen = profile(baseline=baseline, train=train, val=val, feedback=feedback, reflector_ok=reflector)
    budget = Budget(name="b", lm_calls=lm_calls)
    try:
        choice = select(seen, optimizer, budget)
    except OptimizerError as error:
        assert "can run here" in str(error) or "cannot run" in str(error)
        return
    assert choice == select(seen, optimizer, budget)
    assert choice == Choice.model_validate_json(choice.model_dump_json())
    assert choice.predicted_lm_calls <= lm_calls
    rows = getattr(choice.settings, "rungs", (1,))
    assert list(rows) == sorted(set(rows)) and rows[-1] <= val
    assert set(choice.alternatives) | set(getattr(choice.settings, "generators", ())) == set(GENERATORS)
    assert all([choice.reason, *choice.alternatives.values()])
