"""The interval of bounded means: against what is known exactly, its laws, its level and its power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from dspy_toolkit.gate.bounded_mean import Groups, bounded_mean, by_group, lower_end

ALPHAS = st.sampled_from([0.05, 0.025, 0.0125, 1e-3, 1e-6, 1e-12])
DIFFERENCES = (-1.0, 1.0)


@pytest.mark.parametrize("alpha", [0.025, 0.0125, 1e-4, 1e-9])
@pytest.mark.parametrize(("right", "n"), [(50, 50), (57, 60), (30, 60), (1, 40)])
def test_of_right_and_wrong_answers_it_is_clopper_and_pearsons(right, n, alpha):
    values = [1] * right + [0] * (n - right)
    low, high = bounded_mean(values, range(n), alpha, (0, 1))
    assert low == pytest.approx(beta.ppf(alpha, right, n - right + 1), abs=1e-3)
    assert high == pytest.approx(1 if right == n else beta.isf(alpha, right + 1, n - right), abs=1e-3)


def test_its_quantiles_are_those_that_drawing_finds():
    """Of the Bayesian bootstrap with one group more that is as the least, where nothing can be unseen."""
    values = np.random.default_rng(0).gamma(2, 0.1, 80) - 0.3
    drawn = np.random.default_rng(1).exponential(size=(200_000, 81))
    means = drawn @ np.append(values, values.min()) / drawn.sum(axis=1)
    assert lower_end(Groups(values, np.ones(80)), 0.001, values.min()) == pytest.approx(
        np.quantile(means, 0.001), abs=0.003
    )


VALUES = st.lists(st.tuples(st.floats(-1, 1, width=16), st.integers(0, 8)), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(VALUES, ALPHAS)
def test_it_contains_the_mean_turns_over_lies_in_range_and_widens(rows, alpha):
    values, groups = (list(column) for column in zip(*rows, strict=True))
    low, high = bounded_mean(values, groups, alpha, DIFFERENCES)
    assert -1 - 1e-9 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= 1 + 1e-9
    assert bounded_mean(np.negative(values), groups, alpha, DIFFERENCES) == pytest.approx((-high, -low), abs=1e-9)
    wider = bounded_mean(values, groups, alpha / 10, DIFFERENCES)
    assert wider.low <= low + 1e-3 and high - 1e-3 <= wider.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 0.875, width=16), min_size=2, max_size=25), ALPHAS, st.data())
def test_a_row_that_scores_higher_moves_the_lower_end_up(values, alpha, data):
    at = data.draw(st.integers(0, len(values) - 1))
    more = [*values]
    more[at] += data.draw(st.floats(0, 0.1))
    one, two = (lower_end(by_group(each, range(len(values))), alpha, -1.0) for each in (values, more))
    assert two >= one - 2e-3


def test_a_gain_seen_on_every_row_is_no_proof_against_rare_great_losses():
    """+0.01 in 99 of 100, -0.99 in 1 of 100: the mean is 0, and most samples of 50 hold no loss at all."""
    low, _ = bounded_mean(np.full(50, 0.01), np.arange(50), 0.0125, DIFFERENCES)
    assert low < 0
    unseen = 1 - 0.0125 ** (1 / 50)  # at this rate 50 rows miss every loss with a probability of alpha
    assert low == pytest.approx(0.01 * (1 - unseen) - unseen)


def test_it_is_the_same_every_time_and_ignores_the_order_of_rows():
    random = np.random.default_rng(0)
    values, groups = random.uniform(-1, 1, 60), np.array([f"g{i // 3}" for i in range(60)])
    order = random.permutation(60)
    first = bounded_mean(values, groups, 0.01, DIFFERENCES)
    assert bounded_mean(values, groups, 0.01, DIFFERENCES) == first
    assert bounded_mean(values[order], groups[order], 0.01, DIFFERENCES) == pytest.approx(first, abs=1e-9)


def test_rows_that_share_a_group_count_as_one():
    """Each row copied four times says no more than once; counted as rows it would seem to say twice as much."""
    values = np.random.default_rng(2).uniform(-1, 1, 50)
    once = bounded_mean(values, range(50), 0.025, DIFFERENCES)
    copied = bounded_mean(np.repeat(values, 4), np.repeat(range(50), 4), 0.025, DIFFERENCES)
    as_rows = bounded_mean(np.repeat(values, 4), range(200), 0.025, DIFFERENCES)
    assert copied == pytest.approx(once, abs=1e-9)
    assert as_rows.high - as_rows.low < 0.6 * (once.high - once.low)


def normal(random, n, mean, sd):
    return random.normal(mean, sd, n).clip(-1, 1)


def disasters(gain, sd):
    """A little better on every row, all lost on a few: mean 0."""
    return lambda random, n: np.where(
        random.uniform(size=n) < gain / (1 + gain), -1, random.normal(gain, sd, n).clip(-1, 1)
    )


NOTHING_GAINED = {
    "normal 0.12": lambda random, n: normal(random, n, 0, 0.12),
    "normal 0.4": lambda random, n: normal(random, n, 0, 0.4),
    "disasters, 3 %": disasters(0.03, 0),
    "disasters, 5 %": disasters(0.05, 0),
    "noisy disasters": disasters(0.03, 0.1),
    "exponential losses": lambda random, n: (0.2 * (1 - random.exponential(size=n))).clip(-1, 1),
}


def shown(draw, n: int, alpha: float, times: int) -> float:
    random, ones = np.random.default_rng(n), np.ones(n)
    return float(np.mean([lower_end(Groups(draw(random, n), ones), alpha, -1.0) > 0 for _ in range(times)]))


def check_level(times: int) -> None:
    for name, draw in NOTHING_GAINED.items():
        for n, alpha in ((60, 0.0125), (200, 0.0125), (200, 0.001)):
            limit = alpha + 3 * (alpha / times) ** 0.5 + 1 / times
            assert shown(draw, n, alpha, times) <= limit, (name, n, alpha)


@pytest.mark.soak
def test_the_level_is_kept():
    check_level(times=80)


@pytest.mark.soak
def test_the_level_is_kept_in_thousands_of_samples():
    check_level(times=4000)


def test_the_power_is_near_that_of_a_t_test_where_one_may_be_trusted():
    """At a gain that a t-test shows four times in five: 300 rows, sd 0.12 (0.64 in version 0.1.0) and 0.2."""
    for sd, least in ((0.12, 0.64), (0.2, 0.68)):
        gain = (norm.isf(0.0125) + 0.84) * sd / 300**0.5
        found = shown(lambda random, n, sd=sd, gain=gain: normal(random, n, gain, sd), 300, 0.0125, 120)
        assert found >= least - 3 * (0.7 * 0.3 / 120) ** 0.5
