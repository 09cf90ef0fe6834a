"""What the optimizers say that they will cost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import profile

from dspy_toolkit.optimizers import Budget, bootstrap, gepa, mipro
from dspy_toolkit.optimizers.plan import Impossible, Plan

PLANNERS = {"bootstrap": bootstrap.plan, "mipro": mipro.plan, "gepa": gepa.plan}


@pytest.mark.parametrize("name", PLANNERS)
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
    plan = PLANNERS[name](seen, Budget(name="b", lm_calls=lm_calls))
    if isinstance(plan, Impossible):
        assert plan.reason
        return
    assert 0 < plan.predicted_lm_calls <= lm_calls
    assert 1 <= plan.settings["val_rows"] <= val
    if name == "gepa":
        # Until GEPA stops: reflections with the runs that cause them, and one last evaluation that it did not foresee.
        runs = plan.settings["max_metric_calls"]
        cost = max(cost, 1)
        assert runs * cost + runs / (2 * gepa.MINIBATCH) * predictors <= lm_calls


@pytest.mark.parametrize("name", PLANNERS)
def test_the_light_budget_is_enough_for_an_ordinary_project(name: str) -> None:
    plan = PLANNERS[name](profile(train=200, val=130), Budget(name="light", lm_calls=300))
    assert isinstance(plan, Plan)
    assert plan.predicted_lm_calls >= 200


@pytest.mark.parametrize(
    ("name", "changes", "lm_calls", "reason"),
    [
        ("bootstrap", {"train": 0}, 300, "no training rows"),
        ("gepa", {"train": 0}, 300, "no training rows"),
        ("mipro", {"val": 0}, 300, "no validation rows"),
        ("mipro", {"train": 1}, 300, "at least 2 training rows, and there are 1"),
        ("gepa", {"calls_per_run": 0.0}, 300, "asks no language model"),
        ("bootstrap", {}, 20, "one candidate costs about 26 LM calls, and the tiny budget has 20"),
        ("mipro", {}, 60, "3 trials cost about 74 LM calls, and the tiny budget has 60"),
        ("gepa", {}, 30, "needs 4 evaluations of 10 rows .* the tiny budget of 30 LM calls has room for 1.2"),
    ],
)
def test_a_plan_that_cannot_be_says_why(name: str, changes: dict[str, float], lm_calls: int, reason: str) -> None:
    plan = PLANNERS[name](profile(**changes), Budget(name="tiny", lm_calls=lm_calls))
    assert isinstance(plan, Impossible)
    assert re.search(reason, plan.reason), plan.reason


def test_a_costlier_program_gets_fewer_candidates() -> None:
    cheap, dear = (bootstrap.plan(profile(calls_per_run=cost), Budget(name="b", lm_calls=1200)) for cost in (1.0, 4.0))
    assert isinstance(cheap, Plan)
    assert isinstance(dear, Plan)
    assert dear.settings["candidates"] < cheap.settings["candidates"]
