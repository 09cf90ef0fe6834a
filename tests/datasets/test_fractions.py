"""How rows are divided where a dataset does not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.datasets.fractions import MOST_CHOOSING, default_fractions
from dspy_toolkit.gate.intervals import detectable_proportion

FIRST_ALPHA = 0.0125
"""What a first opening may spend: a quarter of 5 %."""


@given(rows=st.integers(1, 1_000_000))
def test_every_split_has_a_share_and_fewer_rows_seal_no_smaller_one(rows: int) -> None:
    some, more = default_fractions(rows), default_fractions(2 * rows)
    assert some.train + some.val + some.sealed == pytest.approx(1)
    assert some.sealed >= more.sealed >= 1 / 3
    assert min(some.train, some.val) > 0
    assert some.val * rows <= 1.5 * MOST_CHOOSING


@pytest.mark.parametrize(("rows", "gain"), [(200, 0.12), (500, 0.08)])
def test_a_gain_of_the_first_night_can_be_shown(rows: int, gain: float) -> None:
    """Four times in five, where 20 % of the rows differ."""
    sealed = round(rows * default_fractions(rows).sealed)
    assert detectable_proportion(0.2, sealed, FIRST_ALPHA) <= gain + 0.001


@given(rows=st.integers(2, 100_000))
def test_the_shares_stay_while_a_dataset_grows_a_little(rows: int) -> None:
    around = {default_fractions(rows + step).sealed for step in range(max(rows // 100, 1))}
    assert len(around) <= 2
