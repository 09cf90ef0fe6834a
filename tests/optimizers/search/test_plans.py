"""What the optimizers say that they will cost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.optimizers import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan
from dspy_toolkit.optimizers.search import gepa
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS, forecast, least, plan_optimizer
from dspy_toolkit.optimizers.settings import NoSearch
from tests.optimizers.toys import profile


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=150)
@given(
    train=st.integers(0, 500),
    val=st.integers(0, 300),
    predictors=st.integers(1, 6),
    cost=st.one_of(st.just(0.0), st.floats(0.05, 8)),
    lm_calls=st.integers(1, 6000),
)
def test_a_plan_stays_within_its_budget(
    name: str, train: int, val: int, predictors: int, cost: float, lm_calls: int
) -> None:
    seen = profile(train=train, val=val, predictors=predictors, calls_per_run=cost)
    settled = plan_optimizer(name, seen, Budget(name="b", lm_calls=lm_calls))
    if isinstance(settled, Infeasible):
        assert settled.reason
        return
    assert 0 < settled.predicted_lm_calls <= lm_calls
    assert 1 <= settled.settings.val_rows <= val
    assert forecast(settled, seen).lm_calls == settled.predicted_lm_calls
    if name == "gepa":
        # Until GEPA stops: reflections with the runs that cause them, and one last evaluation that it did not foresee.
        runs = settled.settings.max_metric_calls
        cost = max(cost, 1)
        assert runs * cost + runs / (2 * gepa.MINIBATCH) * predictors <= lm_calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_light_budget_is_enough_for_an_ordinary_project(name: str) -> None:
    settled = plan_optimizer(name, profile(train=200, val=130), Budget(name="light", lm_calls=300))
    assert isinstance(settled, Plan)
    assert settled.predicted_lm_calls >= (150 if name == "bootstrap" else 200)


@pytest.mark.parametrize(
    ("name", "changes", "lm_calls", "reason"),
    [
        ("random", {"train": 0}, 300, "no training rows"),
        ("gepa", {"train": 0}, 300, "no training rows"),
        ("mipro", {"val": 0}, 300, "no validation rows"),
        ("mipro", {"train": 1}, 300, "at least 2 training rows, and there are 1"),
        ("gepa", {"calls_per_run": 0.0}, 300, "asks no language model"),
        ("random", {}, 20, "one candidate costs about 26 LM calls, and the tiny budget has 20"),
        ("bootstrap", {}, 20, "its candidate costs about 28 LM calls, and the tiny budget has 20"),
        ("labelled", {}, 15, "one candidate costs about 20 LM calls, and the tiny budget has 15"),
        ("labelled", {"predictors": 2}, 300, "no answers for the steps in between of a program with 2 predictors"),
        ("mipro", {}, 60, "3 trials cost about 74 LM calls, and the tiny budget has 60"),
        ("gepa", {}, 30, "needs 4 evaluations of 10 rows .* the tiny budget of 30 LM calls has room for 1.2"),
    ],
)
def test_a_plan_that_cannot_be_says_why(name: str, changes: dict[str, float], lm_calls: int, reason: str) -> None:
    settled = plan_optimizer(name, profile(**changes), Budget(name="tiny", lm_calls=lm_calls))
    assert isinstance(settled, Infeasible)
    assert re.search(reason, settled.reason), settled.reason


def test_a_costlier_program_gets_fewer_candidates() -> None:
    cheap, dear = (
        plan_optimizer("random", profile(calls_per_run=cost), Budget(name="b", lm_calls=1200)) for cost in (1.0, 4.0)
    )
    assert isinstance(cheap, Plan)
    assert isinstance(dear, Plan)
    assert dear.settings.candidates < cheap.settings.candidates


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=50)
@given(cost=st.floats(0.5, 6), rows=st.integers(2, 40), train=st.integers(2, 300), pass_rate=st.floats(0, 1))
def test_the_least_allowance_is_the_least(name: str, cost: float, rows: int, train: int, pass_rate: float) -> None:
    seen = profile(train=train, val=100, calls_per_run=cost, pass_rate=pass_rate)
    calls = least(name, seen, rows, 5000)
    assert calls is not None
    settle = OPTIMIZERS[name].plan
    assert isinstance(settle(seen, Budget(name="b", lm_calls=calls), rows), Plan)
    assert isinstance(settle(seen, Budget(name="b", lm_calls=calls - 1), rows), Infeasible)


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=50)
@given(rows=st.integers(2, 40), train=st.integers(2, 300), small=st.integers(50, 400), more=st.integers(0, 2000))
def test_more_to_spend_is_never_fewer_steps(name: str, rows: int, train: int, small: int, more: int) -> None:
    """A race goes on from where an arm was; its earlier choices must stay as they are."""
    seen = profile(train=train, val=100)
    before, after = (OPTIMIZERS[name].plan(seen, Budget(name="b", lm_calls=n), rows) for n in (small, small + more))
    if isinstance(before, Infeasible):
        return
    assert isinstance(after, Plan)
    for key, value in before.settings:
        if key in ("candidates", "trials", "max_metric_calls", "slice"):
            assert getattr(after.settings, key) >= value
        else:
            assert getattr(after.settings, key) == value


def test_a_forecast_in_tokens_and_seconds() -> None:
    seen = profile(prompt_tokens=100.0, demo_tokens=20.0, seconds_per_call=0.5)
    settled = Plan(settings=NoSearch(), predicted_lm_calls=40, demos=4.0)
    cost = forecast(settled, seen)
    assert (cost.lm_calls, cost.prompt_tokens, cost.seconds) == (40, 40 * 180, 20.0)
    assert forecast(settled, profile(seconds_per_call=0.0)).seconds is None
