"""What a budget is, and how much of it one evaluation may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import BUDGETS, Budget, find_budget
from dspy_toolkit.optimizers.budget import rows_for


def test_the_three_budgets() -> None:
    assert {name: budget.lm_calls for name, budget in BUDGETS.items()} == {"light": 300, "medium": 1200, "heavy": 5000}
    assert find_budget("medium").name == "medium"


@pytest.mark.parametrize(("typed", "meant"), [("lihgt", "light"), ("mediun", "medium"), ("Heavy", "heavy")])
def test_a_typo_is_told_what_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(OptimizerError, match=f"no budget '{typed}'. Did you mean {meant}"):
        find_budget(typed)


@given(share=st.floats(0.01, 0.99), calls=st.integers(1, 10_000), cost=st.floats(0, 20), available=st.integers(0, 2000))
def test_rows_are_at_least_ten_at_most_all_and_else_within_the_share(
    share: float, calls: int, cost: float, available: int
) -> None:
    rows = rows_for(share, Budget(name="b", lm_calls=calls), cost, available)
    assert min(available, 10) <= rows <= available
    if rows > 10:
        assert rows * max(cost, 1) <= share * calls


@pytest.mark.parametrize(("text", "calls", "seconds"), [("800", 800, None), ("15m", 1_000_000, 900), ("2h", 1_000_000, 7200)])
def test_a_number_of_calls_and_a_time_are_budgets(text: str, calls: int, seconds: float | None) -> None:
    assert find_budget(text) == Budget(name=text, lm_calls=calls, seconds=seconds)


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "15 m", "m", "5s", "", "12345678"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(OptimizerError, match=r"There is no budget .* LM calls \(800\) and a time \(15m, 2h\) are budgets too"):
        find_budget(text)


def test_a_time_becomes_calls_by_what_a_call_took() -> None:
    assert find_budget("15m").within(0.5).lm_calls == 1800
    assert find_budget("800").within(0.5).lm_calls == 800
    with pytest.raises(OptimizerError, match="the probe timed no call"):
        find_budget("15m").within(0.0)
    with pytest.raises(OptimizerError, match="less than one LM call, which takes 90.00 s"):
        find_budget("1m").within(90.0)
