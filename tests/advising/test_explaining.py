"""Numbers in words are found, and one that no fact has is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.advising.explaining import numbers_in, unsupported_numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("rate 1e-3, rank 16", [0.001, 16.0]),
        ("1,000 rows and 2.5 %", [1000.0, 2.5]),
        ("no numbers; x86 and q4_1 aside", []),
        ("from -3 to −4", [-3.0, -4.0]),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, numbers: list[float]) -> None:
    assert numbers_in(text)[: len(numbers)] == numbers


def test_a_number_that_no_fact_has_is_named() -> None:
    assert unsupported_numbers("Rate 0.3 gives 91.2 % in 40 rounds.", [0.3, "40 rounds", 88.9]) == [91.2]
    assert unsupported_numbers("88.9 % is 89 %", [88.94]) == []


@given(st.floats(0.001, 1e6).map(lambda value: round(value, 3)))
def test_a_fact_supports_itself(value: float) -> None:
    assert unsupported_numbers(f"it is {value}", [value]) == []
