"""Which optimizer is chosen, and the sentence that says why."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Budget, Choice, select
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS
from tests.optimizers.toys import profile

LIGHT = Budget(name="light", lm_calls=300)


def test_feedback_and_a_reflector_make_it_gepa() -> None:
    choice = select(profile(), "auto", LIGHT)
    assert choice.optimizer == "gepa"
    assert "20% on 24 validation rows" in choice.reason
    assert choice.alternatives == dict.fromkeys(["mipro", "random", "bootstrap", "labelled"], "gepa comes first")


def test_without_feedback_it_is_mipro() -> None:
    choice = select(profile(feedback=False), "auto", LIGHT)
    assert choice.optimizer == "mipro"
    assert choice.alternatives["gepa"] == "the metric gives no feedback to reflect on"


def test_a_weak_reflector_rules_out_gepa_and_puts_demonstrations_first() -> None:
    weak = {"reflector_ok": False, "reflector_note": "it gave the old instruction back"}
    choice = select(profile(**weak, labelled=False), "auto", LIGHT)
    assert choice.optimizer == "random"
    assert "cannot write a usable instruction: it gave the old instruction back" in choice.alternatives["gepa"]
    assert choice.alternatives["mipro"] == "random comes first"


def test_rows_that_say_all_that_a_trace_would_are_taken_as_they_are() -> None:
    choice = select(profile(reflector_ok=False, labelled=True), "auto", LIGHT)
    assert choice.optimizer == "labelled"
    assert choice.alternatives["random"] == choice.alternatives["bootstrap"] == "labelled comes first"


def test_a_pass_rate_near_zero_rules_out_bootstrapping() -> None:
    choice = select(profile(reflector_ok=False, pass_rate=0.0, baseline=0.0), "auto", LIGHT)
    assert choice.optimizer == "labelled"
    assert choice.reason.endswith("labelled rows can serve as demonstrations.")
    for name in ("bootstrap", "random"):
        assert "0% of the program's answers are right, so there is next to nothing" in choice.alternatives[name]


def test_few_validation_rows_rule_out_many_candidates() -> None:
    choice = select(profile(reflector_ok=False, val=12, labelled=False), "auto", LIGHT)
    assert choice.optimizer == "bootstrap"
    assert choice.alternatives["random"] == "12 validation rows cannot tell many candidates apart"


def test_a_program_of_several_steps_has_no_labelled_demonstrations() -> None:
    choice = select(profile(reflector_ok=False, predictors=2, pass_rate=0.0), "auto", Budget(name="b", lm_calls=900))
    assert choice.optimizer == "random"
    assert "steps in between" in choice.alternatives["labelled"]


def test_a_perfect_program_is_left_alone() -> None:
    choice = select(profile(baseline=1.0, pass_rate=1.0), "auto", LIGHT)
    assert (choice.optimizer, choice.val_rows, choice.predicted_lm_calls) == ("none", 0, 0)
    assert "nothing to gain" in choice.reason


def test_a_perfect_program_is_compiled_when_asked_for() -> None:
    assert select(profile(baseline=1.0, pass_rate=1.0), "bootstrap", LIGHT).optimizer == "bootstrap"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_was_asked_for_is_taken(name: str) -> None:
    choice = select(profile(reflector_ok=False, feedback=False), name, LIGHT)
    assert choice.optimizer == name
    assert choice.reason == f"{name} was asked for."
    assert set(choice.alternatives) == set(OPTIMIZERS) - {name}
    assert set(choice.forecasts) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_that_was_asked_for_and_cannot_run_is_an_error(name: str) -> None:
    with pytest.raises(OptimizerError, match=f"{name} cannot run here: .* LM calls.*larger --budget or --optimizer"):
        select(profile(), name, Budget(name="tiny", lm_calls=12))


def test_none_can_run() -> None:
    with pytest.raises(OptimizerError, match=r"No optimizer can run here \(gepa: .*; mipro: .*; labelled: .*Add rows"):
        select(profile(), "auto", Budget(name="tiny", lm_calls=5))


@pytest.mark.parametrize(("typed", "meant"), [("bootsrap", "bootstrap"), ("mipro2", "mipro"), ("GEPA", "gepa")])
def test_a_typo_is_told_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(OptimizerError, match=f"no optimizer '{typed}'.*{meant}"):
        select(profile(), typed, LIGHT)


@settings(max_examples=100)
@given(
    baseline=st.floats(0, 1),
    train=st.integers(0, 400),
    val=st.integers(1, 200),
    feedback=st.booleans(),
    reflector=st.booleans(),
    lm_calls=st.sampled_from([20, 100, 300, 1200, 5000]),
)
def test_a_choice_is_a_function_of_its_arguments_and_says_why(
    baseline: float, train: int, val: int, feedback: bool, reflector: bool, lm_calls: int
) -> None:
    seen = profile(baseline=baseline, train=train, val=val, feedback=feedback, reflector_ok=reflector)
    budget = Budget(name="b", lm_calls=lm_calls)
    try:
        choice = select(seen, "auto", budget)
    except OptimizerError as error:
        assert "No optimizer can run here" in str(error)
        return
    assert choice == select(seen, "auto", budget)
    assert choice == Choice.model_validate_json(choice.model_dump_json())
    assert choice.predicted_lm_calls <= lm_calls
    assert set(choice.alternatives) | {choice.optimizer} >= set(OPTIMIZERS)
    assert all([choice.reason, *choice.alternatives.values()])
