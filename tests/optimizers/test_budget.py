"""What a budget is."""

from __future__ import annotations

import pytest

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import BUDGETS, Budget, find_budget
from tests.optimizers.toys import profile


def test_the_three_budgets() -> None:
    assert {name: budget.lm_calls for name, budget in BUDGETS.items()} == {"light": 300, "medium": 1200, "heavy": 5000}
    assert find_budget("medium").name == "medium"


@pytest.mark.parametrize(("typed", "meant"), [("lihgt", "light"), ("mediun", "medium"), ("Heavy", "heavy")])
def test_a_typo_is_told_what_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(OptimizerError, match=f"no budget '{typed}'. Did you mean {meant}"):
        find_budget(typed)


@pytest.mark.parametrize(
    ("text", "calls", "seconds"), [("800", 800, None), ("15m", 1_000_000, 900), ("2h", 1_000_000, 7200)]
)
def test_a_number_of_calls_and_a_time_are_budgets(text: str, calls: int, seconds: float | None) -> None:
    assert find_budget(text) == Budget(name=text, lm_calls=calls, seconds=seconds)


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "15 m", "m", "5s", "", "12345678"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(
        OptimizerError,
        match=r"There is no budget .* LM calls \(800\), a time \(15m, 2h\) and dollars \(2.50usd\) are budgets too",
    ):
        find_budget(text)


@pytest.mark.parametrize(("text", "usd"), [("2.50usd", 2.5), ("$3", 3.0), ("0.05usd", 0.05)])
def test_dollars_are_a_budget(text: str, usd: float) -> None:
    assert find_budget(text) == Budget(name=text, lm_calls=1_000_000, usd=usd)


def test_a_time_becomes_calls_by_what_a_call_took() -> None:
    assert find_budget("15m").within(profile(seconds_per_call=0.5)).lm_calls == 1800
    assert find_budget("800").within(profile(seconds_per_call=0.5)).lm_calls == 800
    with pytest.raises(OptimizerError, match="the probe timed no call"):
        find_budget("15m").within(profile(seconds_per_call=0.0))
    with pytest.raises(OptimizerError, match=r"less than one LM call, which takes 90\.00 s"):
        find_budget("1m").within(profile(seconds_per_call=90.0))


def test_dollars_become_calls_by_what_a_call_cost() -> None:
    assert find_budget("2usd").within(profile(usd_per_call=0.004)).lm_calls == 500
    with pytest.raises(OptimizerError, match="is in dollars, and the probe saw no price"):
        find_budget("2usd").within(profile())
