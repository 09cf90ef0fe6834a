"""How many rows a gain needs, against drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate import power
from dspy_toolkit.gate.bounded_mean import Groups, lower_end


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.3), st.floats(0.05, 0.6), st.integers(1, 50))
def test_the_rows_are_the_fewest_that_show_the_gain(gain, discordance, looks):
    found = power(gain=gain, discordance=discordance, looks=looks)
    assert power(rows=found.rows, discordance=discordance, looks=looks).gain <= gain + 1e-9
    if found.rows > 1:
        assert power(rows=found.rows - 1, discordance=discordance, looks=looks).gain > gain
    assert power(gain=gain, rows=found.rows, discordance=discordance, looks=looks).power == pytest.approx(0.8, abs=0.05)


def test_at_the_rows_that_it_names_mcnemar_shows_the_gain_four_times_in_five():
    n, gain, share = power(gain=0.08, discordance=0.25).rows, 0.08, 0.25
    wins, losses, _ = (
        np.random.default_rng(0).multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share], 4000).T
    )
    shown = wins - losses > norm.isf(0.0125) * np.sqrt(wins + losses)
    assert shown.mean() == pytest.approx(0.8, abs=0.03)


def test_of_graded_scores_too():
    n = power(gain=0.04, sd=0.15).rows
    random = np.random.default_rng(1)
    shown = [lower_end(Groups(random.normal(0.04, 0.15, n), np.ones(n)), 0.0125, -1.0) > 0 for _ in range(150)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.1)


def test_given_both_it_says_how_often():
    assert power(gain=0.05, rows=100).power < power(gain=0.05, rows=400).power < power(gain=0.1, rows=400).power
    assert power(gain=0.02, rows=300, sd=0.1).power < power(gain=0.04, rows=300, sd=0.1).power


def test_later_looks_need_more_rows():
    assert [power(gain=0.05, looks=looks).rows for looks in (1, 10)] == sorted(
        {power(gain=0.05, looks=looks).rows for looks in (1, 10)}
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "Give a gain to find the rows"),
        ({"gain": 5}, r"gain is 5, outside \(0, 1\]"),
        ({"rows": 0}, "0 rows, fewer than one"),
        ({"gain": 0.1, "sd": 0.1, "discordance": 0.1}, "not both"),
        ({"gain": 1e-6}, "No test of up to 10,000,000 rows"),
        ({"rows": 10, "rate": 0.9}, "rate is 0.9, outside"),
    ],
)
def test_what_cannot_be_answered_is_refused(asked, said):
    with pytest.raises(DatasetError, match=said):
        power(**asked)
