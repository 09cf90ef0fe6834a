"""What earlier runs say about the optimizers, whatever their order; and what they cannot overrule."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.optimizers import Budget, select
from dspy_toolkit.optimizers.plan.similar_runs import MOST, experience, similar_runs
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.tracking.history import PastRun
from tests.optimizers.past_runs import MODEL, past
from tests.optimizers.toys import profile

NAMES = ("gepa", "mipro", "bootstrap", "labelled")
LIGHT = Budget(name="light", lm_calls=300)


def runs(*gains: tuple[str, float]) -> list[PastRun]:
    return [past(name, gain, number) for number, (name, gain) in enumerate(gains)]


gained = st.lists(
    st.tuples(st.sampled_from([*NAMES, "baseline"]), st.floats(-0.5, 1), st.integers(0, 5)), max_size=12
).map(
    lambda found: [past(name, gain, number, search=f"s{search}") for number, (name, gain, search) in enumerate(found)]
)


def test_what_gained_more_is_expected_to_gain_more() -> None:
    priors, reason = experience(runs(("gepa", 0.02), ("bootstrap", 0.10), ("bootstrap", 0.20)))
    assert priors["bootstrap"] > 0 > priors["gepa"]
    assert reason == "Mean gains on validation, in points, of 3 similar runs: bootstrap +15.0 in 2, gepa +2.0 in 1."


def test_one_lucky_run_does_not_outweigh_many() -> None:
    priors, _ = experience(runs(*[("bootstrap", 0.15)] * 6, ("mipro", 0.20)))
    assert priors["bootstrap"] > priors["mipro"], "0.20 / 3 is less than 0.90 / 8"


@pytest.mark.parametrize(
    "found", [[], [("bootstrap", 0.3), ("gepa", 0.0)], [("baseline", 0.0)] * 5, [("start", 0.1)] * 5]
)
def test_too_little_is_no_experience(found: list[tuple[str, float]]) -> None:
    assert experience(runs(*found)) == ({}, "")


def test_a_search_from_the_cache_counts_once() -> None:
    again = [past("bootstrap", 0.3, number, search="the same") for number in range(5)]
    assert experience([*again, past("gepa", 0.0, 9)]).reason == ""
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


def test_the_choice_names_the_numbers_and_hands_them_to_the_pool() -> None:
    choice = select(profile(), "auto", LIGHT, runs(("gepa", 0.0), ("bootstrap", 0.10), ("bootstrap", 0.20)))
    assert choice.reason.endswith("of 3 similar runs: bootstrap +15.0 in 2, gepa +0.0 in 1.")
    assert isinstance(choice.settings, PoolSettings)
    assert choice.settings.priors["bootstrap"] > 0 > choice.settings.priors["gepa"]
    assert "gepa" in choice.settings.generators, "a pool asks it later, not never"


def test_what_was_asked_for_is_taken_whatever_the_runs_say() -> None:
    found = runs(("gepa", 0.0), ("bootstrap", 0.10), ("bootstrap", 0.20))
    assert select(profile(), "gepa", LIGHT, found) == select(profile(), "gepa", LIGHT)


@given(gained)
def test_the_order_of_the_runs_does_not_matter(found: list[PastRun]) -> None:
    shuffled = random.Random(0).sample(found, len(found))
    assert experience(found) == experience(shuffled)


@given(gained)
def test_expectations_are_bounded_and_level_out(found: list[PastRun]) -> None:
    priors, reason = experience(found)
    assert bool(priors) == bool(reason)
    assert all(-MOST <= gain <= MOST for gain in priors.values())
    if priors:
        assert min(priors.values()) <= 0 <= max(priors.values())
