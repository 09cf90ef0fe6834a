"""Intervals against published tables, scipy, and the laws that every interval keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from dspy_toolkit.gate.intervals import (
    detectable_mean,
    detectable_proportion,
    mean_interval,
    tango,
    wilson,
)

ALPHAS = st.sampled_from([0.05, 0.025, 0.0125, 1e-3, 1e-6, 1e-12])


@pytest.mark.parametrize(
    ("wins", "losses", "n", "alpha", "low", "high", "digits"),
    [
        # Tango 1998, table I, 90 %.
        (0, 0, 30, 0.05, -0.083, 0.083, 3),
        (0, 1, 30, 0.05, -0.136, 0.052, 3),
        (0, 2, 30, 0.05, -0.183, 0.022, 3),
        (0, 0, 50, 0.05, -0.051, 0.051, 3),
        (0, 1, 50, 0.05, -0.085, 0.032, 3),
        (0, 2, 50, 0.05, -0.114, 0.013, 3),
        (0, 0, 80, 0.05, -0.033, 0.033, 3),
        (0, 1, 80, 0.05, -0.054, 0.021, 3),
        (0, 2, 80, 0.05, -0.073, 0.009, 3),
        # Tango 1998, section 6.2: sleeping difficulties, 95 %.
        (9, 3, 32, 0.025, -0.027, 0.390, 3),
        # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness before and after transplantation.
        (1, 7, 21, 0.025, -0.517, -0.026, 3),
        # The same authors' R package contingencytables, data cavo_2012: complete response to a therapy.
        (6, 16, 161, 0.025, -0.1240, -0.0054, 4),
        # R, PropCIs::scoreci.mp(25, 28, 618, 0.90).
        (28, 25, 618, 0.05, -0.0148, 0.0247, 4),
    ],
)
def test_tango_agrees_with_published_intervals(wins, losses, n, alpha, low, high, digits):
    found = tango(wins, losses, n, alpha)
    assert [round(float(end), digits) for end in found] == [low, high]


def test_tango_without_any_difference_is_the_closed_form():
    """Tango 1998, equation 34."""
    z = stats.norm.isf(0.025)
    low, high = tango(0, 0, 30, 0.025)
    assert low == pytest.approx(-(z**2) / (30 + z**2), abs=1e-12)
    assert high == pytest.approx(z**2 / (30 + z**2), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 200))
def test_tango_ends_solve_the_score_equation_with_a_likelihood_maximised_by_search(wins, losses, others):
    n, alpha = wins + losses + others, 0.01
    for delta in map(float, tango(wins, losses, n, alpha)):

        def cost(q, delta=delta):
            parts = q + delta, q, 1 - 2 * q - delta
            return -sum(count * np.log(part) for count, part in zip((wins, losses, others), parts, strict=True))

        lowest, highest = max(0.0, -delta), (1 - delta) / 2
        q = minimize_scalar(cost, bounds=(lowest + 1e-12, highest - 1e-12), options={"xatol": 1e-12}).x
        statistic = (wins - losses - n * delta) / (n * (2 * q + delta - delta**2)) ** 0.5
        assert abs(statistic) == pytest.approx(stats.norm.isf(alpha), rel=1e-4)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 300), ALPHAS)
def test_tango_contains_the_difference_turns_over_with_the_series_and_lies_in_range(wins, losses, others, alpha):
    n = max(wins + losses + others, 1)
    low, high = tango(wins, losses, n, alpha)
    swapped_low, swapped_high = tango(losses, wins, n, alpha)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert (swapped_low, swapped_high) == (-high, -low)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 300), ALPHAS)
def test_tango_excludes_zero_exactly_when_mcnemar_rejects(wins, losses, others, alpha):
    """At a difference of 0 the score statistic is McNemar's (Tango 1998, equation 31)."""
    low, _ = tango(wins, losses, max(wins + losses + others, 1), alpha)
    rejected = wins - losses > stats.norm.isf(alpha) * (wins + losses) ** 0.5
    assert (low > 0) == rejected


def test_tango_in_the_lens_trial():
    """Tango 1998, section 6.1: 44 crossover pairs, lower end of the 90 % interval."""
    assert round(float(tango(0, 1, 44, 0.05)[0]), 3) == -0.096


def test_tango_at_the_extremes():
    assert float(tango(0, 10, 10, 0.025)[0]) == -1
    assert float(tango(10, 0, 10, 0.025)[1]) == 1


def test_wilson_agrees_with_newcombe_1998_table_1():
    """Newcombe 1998, Statistics in Medicine 17:857-872: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), ends in published.items():
        assert wilson(successes, n) == pytest.approx(ends, abs=5e-5)


def test_the_mean_of_right_and_wrong_answers_gets_wilson_and_anything_else_the_bounded_mean():
    assert mean_interval([1, 0, 1, 1], ["a", "b", "c", "d"]) == wilson(3, 4)
    assert mean_interval([1, 0, 1, 1], ["a", "a", "c", "d"]) != wilson(3, 4)
    low, high = mean_interval([0.5, 0.25, 0.75, 1.0], ["a", "b", "c", "d"])
    assert 0 <= low < 0.625 < high <= 1


@pytest.mark.parametrize(("discordance", "n", "alpha"), [(0.2, 240, 0.0125), (0.4, 100, 0.025), (0.1, 500, 0.001)])
def test_detectable_proportion_is_shown_four_times_in_five(discordance, n, alpha):
    delta = detectable_proportion(discordance, n, alpha)
    random = np.random.default_rng(1)
    shares = [(discordance + delta) / 2, (discordance - delta) / 2, 1 - discordance]
    wins, losses, _ = random.multinomial(n, shares, 4000).T
    shown = tango(wins, losses, n, alpha)[0] > 0
    assert shown.mean() == pytest.approx(0.8, abs=0.035)


def test_detectable_effects_stay_within_a_score_and_shrink_with_rows():
    assert detectable_proportion(0.2, 1000, 0.01) < detectable_proportion(0.2, 100, 0.01) < 1
    assert 0 < detectable_proportion(0, 240, 0.0125) < 0.06
    assert detectable_proportion(1, 1, 1e-12) == 1
    assert detectable_mean([0.1], ["a"], 1e-12) == 1
    values = np.random.default_rng(0).normal(0, 0.2, 400).clip(-1, 1)
    assert detectable_mean(values, np.arange(400), 0.01) == pytest.approx((2.34 + 0.84) * 0.2 / 20, rel=0.15)
