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
