"""The test of a fall: its law, exactly, on every sequence; and how often it is wrong and right, simulated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.monitoring.sequential import (
    EDGE,
    drawn_e_values,
    e_values,
    fall_of,
    log_ratio,
    old_evidence,
    upper_end,
)

scores = st.lists(st.floats(0, 1), max_size=120)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("every", [3, 50])
def test_no_bet_gains_in_expectation(mean: float, every: int) -> None:
    sequences = np.array(list(itertools.product((0.0, 1.0), repeat=9)))
    values = np.array([e_values(sequence, mean, every) for sequence in sequences])
    for truth in (mean, min(1.0, mean + 0.03), 1.0):
        chances = np.prod(np.where(sequences == 1, truth, 1 - truth), axis=1)
        expected = chances @ values
        if truth == mean:
            assert expected == pytest.approx(np.ones(9)), "a fair game at every row"
        else:
            assert (expected <= 1 + 1e-9).all(), "a losing one where the program is better"


@given(mean=st.floats(0.05, 0.95), rows=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_the_old_rows_evidence_is_an_e_value(mean: float, rows: int) -> None:
    from scipy.stats import binom

    right = np.arange(rows + 1)
    expected = binom.pmf(right, rows, mean) @ [old_evidence(mean, k / rows, rows) for k in right]
    assert expected <= 1 + 1e-6


@pytest.mark.parametrize("rows", [5, 38, 60, 80, 240, 1000])
def test_a_false_alarm_is_bounded_whatever_the_old_mean_was(rows: int) -> None:
    """The bound of the module's docstring: after a given draw, the new rows' evidence crosses with the chance alpha times its price."""
    from scipy.stats import binom

    right, alpha = np.arange(rows + 1), 0.01
    for mean in np.linspace(0.005, 0.995, 100):
        price = np.exp([min(log_ratio(mean, k / rows, rows), 50) if k / rows >= mean else 0.0 for k in right])
        assert binom.pmf(right, rows, mean) @ np.minimum(1, alpha * price) <= 2.6 * alpha


@given(reference=st.floats(0, 1), share=st.floats(0.01, 1), rows=st.integers(1, 2000))
@settings(deadline=None)
def test_the_stricter_evidence_against_an_old_mean_is_the_smaller(reference: float, share: float, rows: int) -> None:
    below = max(reference * share, EDGE)
    if below <= min(reference, 1 - EDGE):
        assert np.log(old_evidence(below, reference, rows)) <= log_ratio(below, reference, rows) + 1e-6


@given(scores, st.floats(0, 1))
@settings(deadline=None)
def test_evidence_is_positive_and_grows_with_every_worse_row(values: list[float], reference: float) -> None:
    path = e_values(values, reference)
    assert path.shape == (len(values),) and (path > 0).all()
    worse = e_values([value / 2 for value in values], reference)
    assert (worse >= path - 1e-9 * path).all()


@given(scores, st.floats(0, 1), st.integers(1, 500))
@settings(max_examples=25, deadline=None)
def test_what_is_confirmed_was_suspected(values: list[float], reference: float, rows: int) -> None:
    found, known = fall_of(values, reference, reference_rows=rows), fall_of(values, reference)
    assert found.e_value_beyond_chance <= max(found.e_value, 1.0) * (1 + 1e-6)
    if EDGE <= reference <= 1 - EDGE:
        assert found.e_value <= known.e_value * (1 + 1e-6), "to grant an error makes no evidence"
    assert known.e_value_beyond_chance == known.e_value
    assert found.suspected or not found.confirmed
    assert (found.first is not None) == found.suspected


def test_the_order_decides_when_and_a_later_row_takes_nothing_back() -> None:
    fallen = [0.0] * 40
    found = fall_of(fallen, 0.9)
    assert found.suspected and found.first is not None and found.first < 10
    assert fall_of(fallen + [1.0] * 500, 0.9).first == found.first


def test_evidence_that_is_too_great_for_a_number_is_cut() -> None:
    found = fall_of([0.0] * 3000, 0.95, reference_rows=240)
    assert found.suspected and found.confirmed and 1e100 < found.e_value < np.inf


def test_without_rows_there_is_no_evidence() -> None:
    found = fall_of([], 0.8, reference_rows=100)
    assert (found.n, found.mean, found.e_value, found.high, found.suspected) == (0, None, 1.0, 1.0, False)
    with pytest.raises(ValueError, match="outside"):
        fall_of([1.5], 0.8)


def alarms(rng: np.random.Generator, runs: int, rows: int, truth: float, promoted: float) -> float:
    """The share of runs in which the alarm of `fall_of` is given, at 0.01."""
    paths = (e_values((rng.random(rows) < truth).astype(float), promoted) for _ in range(runs))
    return float(np.mean([path.max() >= 100 for path in paths]))


def test_months_without_a_fall_are_quiet_and_a_fall_of_ten_points_is_found() -> None:
    """At a score at which a test can reach it: docs/monitoring.md has others, where none can."""
    rng = np.random.default_rng(14)
    assert alarms(rng, 1000, 600, 0.95, 0.95) <= 0.01, "at most 1 of 100 months of 600 labelled replies"
    assert alarms(rng, 400, 150, 0.85, 0.95) >= 0.85


def test_a_promoted_score_that_was_drawn_gives_no_more_false_alarms_and_finds_what_can_be_found() -> None:
    """On 240 rows, as exact it would give five times as many: docs/monitoring.md has the table, and the price."""
    rng, rows = np.random.default_rng(15), 240

    def tried(truth: float, replies: int, runs: int) -> tuple[int, int]:
        exact = granted = 0
        for _ in range(runs):
            promoted, replied = float((rng.random(rows) < 0.95).mean()), (rng.random(replies) < truth).astype(float)
            exact += e_values(replied, promoted).max() >= 100
            granted += drawn_e_values(replied, promoted, rows)[0].max() >= 100
        return exact, granted

    exact, granted = tried(0.95, 600, runs=300)
    assert granted <= 3 < exact, "of 300 months"
    exact, granted = tried(0.85, 150, runs=100)
    assert 50 <= granted < 90, "10 points are not found in 9 of 10 runs, and no other rule that was tried does"


def test_graded_scores_give_no_false_alarms_either() -> None:
    rng = np.random.default_rng(16)
    months = [
        drawn_e_values(rng.beta(8, 2, 600), float(rng.beta(8, 2, 100).mean()), 100)[0].max() >= 100 for _ in range(100)
    ]
    assert sum(months) <= 1


def test_the_upper_end_covers_the_mean_at_every_row() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(60):
        values = (rng.random(200) < 0.7).astype(float)
        missed += any(upper_end(values[:n], 0.05) < 0.7 for n in (5, 20, 60, 120, 200))
    assert missed <= 6, "at most 5 % in the long run"
    assert upper_end(np.zeros(200), 0.01) < 0.1


def test_a_graded_score_is_as_good_as_a_right_or_wrong_one() -> None:
    rng = np.random.default_rng(5)
    assert fall_of(rng.beta(4, 2, 300), 0.8).suspected  # a mean of 2/3
    assert not fall_of(rng.beta(8, 2, 300), 0.8).suspected  # a mean of 0.8


@pytest.mark.soak
def test_the_false_alarm_rate_and_the_power_over_many_months() -> None:
    rng = np.random.default_rng(7)
    for promoted, least in ((0.95, 0.85), (0.9, 0.65), (0.8, 0.35)):
        false = alarms(rng, 4000, 600, promoted, promoted)
        found = alarms(rng, 2000, 150, promoted - 0.1, promoted)
        print(f"{promoted:.2f}: false alarms {false:.3%} of months, found within 150: {found:.1%}")
        assert false <= 0.01 and found >= least
