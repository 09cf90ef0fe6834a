"""What earlier runs say about the optimizers, whatever their order; and what they cannot overrule."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Budget, select
from dspy_toolkit.optimizers.plan.similar_runs import prefer, similar_runs
from dspy_toolkit.tracking.history import PastRun
from tests.optimizers.past_runs import MODEL, past
from tests.optimizers.toys import profile

ORDER = ("gepa", "mipro", "bootstrap")
LIGHT = Budget(name="light", lm_calls=300)


def runs(*gains: tuple[str, float]) -> list[PastRun]:
    return [past(name, gain, number) for number, (name, gain) in enumerate(gains)]


gained = st.lists(
    st.tuples(st.sampled_from([*ORDER, "labelled"]), st.floats(-0.5, 1), st.integers(0, 5)), max_size=12
).map(
    lambda found: [past(name, gain, number, search=f"s{search}") for number, (name, gain, search) in enumerate(found)]
)


def test_the_larger_mean_gain_comes_first() -> None:
    order, reason = prefer(ORDER, runs(("gepa", 0.02), ("bootstrap", 0.10), ("bootstrap", 0.20)))
    assert order == ("bootstrap", "gepa", "mipro")
    assert reason == "Mean gains on validation, in points, of 3 similar runs: bootstrap +15.0 in 2, gepa +2.0 in 1."


def test_one_lucky_run_does_not_outweigh_many() -> None:
    many = [("bootstrap", 0.15)] * 6
    order, _ = prefer(ORDER, runs(*many, ("mipro", 0.20)))
    assert order[0] == "bootstrap", "0.20 / 3 is less than 0.90 / 8"


@pytest.mark.parametrize(
    "found",
    [
        [],
        [("bootstrap", 0.3), ("gepa", 0.0)],
        [("bootstrap", 0.3)] * 5,
        [("gepa", 0.0)] * 2,
        [("labelled", 0.3), ("race", 0.2), ("bootstrap", 0.1)],
    ],
    ids=["none", "too few", "one optimizer", "failed twice", "others are not in question"],
)
def test_too_little_is_no_experience(found: list[tuple[str, float]]) -> None:
    assert prefer(ORDER, runs(*found)) == (ORDER, "")


def test_one_that_gained_nothing_three_times_goes_last() -> None:
    order, reason = prefer(ORDER, runs(*[("gepa", 0.0)] * 3))
    assert order == ("mipro", "bootstrap", "gepa"), "also behind those that nobody tried"
    assert "gepa +0.0 in 3" in reason


def test_a_search_from_the_cache_counts_once() -> None:
    again = [past("bootstrap", 0.3, number, search="the same") for number in range(5)]
    assert prefer(ORDER, [*again, past("gepa", 0.0, 9)]).reason == ""
    assert [run.run_id for run in similar_runs(again, profile(), MODEL, MODEL)] == ["run0"], (
        "a repetition leaves the key as it was"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mlx/other@01234567"},
        {"reflection_model": "openai/big"},
        {"graded": True},
        {"baseline": 0.41},
        {"predictors": 2},
        {"optimizer": "none"},
        {"val_gain": None},
    ],
)
def test_an_unlike_run_is_left_out(changes: dict[str, Any]) -> None:
    assert similar_runs([past(**changes)], profile(), MODEL, MODEL) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mlx/tiny@89abcdef"},
        {"model": "mlx/tiny"},
        {"reflection_model": "mlx/tiny@89abcdef"},
        {"baseline": 0.4},
        {"baseline": 0.0},
        {"project": "another"},
        {"task": "text"},
        {"budget": "heavy"},
    ],
)
def test_a_like_run_is_kept(changes: dict[str, Any]) -> None:
    run = past(**changes)
    assert similar_runs([run], profile(), MODEL, MODEL) == (run,)


def test_any_number_of_steps_above_one_is_several() -> None:
    run = past(predictors=3)
    assert similar_runs([run], profile(predictors=2), MODEL, MODEL) == (run,)


def test_the_choice_names_the_numbers() -> None:
    choice = select(profile(), "auto", LIGHT, runs(("gepa", 0.0), ("bootstrap", 0.10), ("bootstrap", 0.20)))
    assert choice.optimizer == "bootstrap"
    assert choice.reason.endswith("of 3 similar runs: bootstrap +15.0 in 2, gepa +0.0 in 1.")
    assert choice.alternatives["gepa"] == "bootstrap comes first"


def test_what_was_asked_for_is_taken_whatever_the_runs_say() -> None:
    found = runs(("gepa", 0.0), ("bootstrap", 0.10), ("bootstrap", 0.20))
    assert select(profile(), "gepa", LIGHT, found) == select(profile(), "gepa", LIGHT)


def test_a_perfect_program_is_left_alone() -> None:
    found = runs(("gepa", 0.0), ("bootstrap", 0.10), ("bootstrap", 0.20))
    assert select(profile(baseline=1.0), "auto", LIGHT, found).optimizer == "none"


@given(found=gained, reflector=st.booleans(), feedback=st.booleans(), calls=st.sampled_from([20, 100, 300, 1200]))
def test_what_the_profile_rules_out_is_never_chosen(
    found: list[PastRun], reflector: bool, feedback: bool, calls: int
) -> None:
    seen, budget = profile(reflector_ok=reflector, feedback=feedback), Budget(name="b", lm_calls=calls)
    try:
        without = select(seen, "auto", budget)
    except OptimizerError as error:
        with pytest.raises(OptimizerError) as again:
            select(seen, "auto", budget, found)
        assert "No optimizer can run here" in str(again.value) and "No optimizer can run here" in str(error)
        return
    choice = select(seen, "auto", budget, found)
    ruled_out = {name for name, why in without.alternatives.items() if not why.endswith("comes first")}
    assert choice.optimizer not in ruled_out
    assert reflector or choice.optimizer != "gepa"
    assert choice.predicted_lm_calls <= calls


@given(found=gained, seed=st.integers(0, 10**6))
def test_the_order_of_the_runs_does_not_matter(found: list[PastRun], seed: int) -> None:
    mixed = random.Random(seed).sample(found, len(found))
    assert similar_runs(mixed, profile(), MODEL, MODEL) == similar_runs(found, profile(), MODEL, MODEL)
    assert prefer(ORDER, mixed) == prefer(ORDER, found)
    assert select(profile(), "auto", LIGHT, mixed) == select(profile(), "auto", LIGHT, found)


@given(found=gained)
def test_an_order_stays_an_order(found: list[PastRun]) -> None:
    assert sorted(prefer(ORDER, found).order) == sorted(ORDER)
    if not prefer(ORDER, found).reason:
        assert prefer(ORDER, found).order == ORDER


def test_an_empty_history_changes_nothing() -> None:
    assert select(profile(), "auto", LIGHT, ()) == select(profile(), "auto", LIGHT)
