"""A judge against people: kappa by hand, against scikit-learn and as laws; and a mean that is corrected for its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation import Calibration, agree, calibrate, corrected_mean
from dspy_toolkit.gate.intervals import wilson

grades = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=40)


def both(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def test_by_hand() -> None:
    """Cohen 1960's form: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no give 0.7 - 0.5 over 0.5."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    seen = agree(*both(pairs))
    assert (seen.n, seen.weights, seen.raw.value) == (50, "none", 0.7)
    assert (seen.raw.low, seen.raw.high) == wilson(35, 50)
    assert seen.kappa is not None
    assert seen.kappa.value == pytest.approx(0.4)
    assert 0.1 < seen.kappa.low < 0.2 and 0.6 < seen.kappa.high < 0.7


@settings(deadline=None, max_examples=40)
@given(grades, st.sampled_from(["none", "linear", "quadratic"]))
def test_scikit_learn_agrees(pairs: list[tuple[int, int]], weights: Any) -> None:
    seen = agree(*both(pairs), weights=weights)
    if len({grade for pair in pairs for grade in pair}) == 1:
        assert seen.kappa is None
        return
    # Its distances are between places in the list of labels, ours between grades: with all labels they are the same.
    theirs = cohen_kappa_score(*both(pairs), labels=[1, 2, 3, 4], weights=None if weights == "none" else weights)
    assert seen.kappa is not None
    assert seen.kappa.value == pytest.approx(theirs)
    assert seen.kappa.low <= seen.kappa.value <= seen.kappa.high <= 1


@settings(deadline=None, max_examples=40)
@given(grades)
def test_equal_grades_have_kappa_1_and_whose_is_whose_says_nothing(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = both(pairs)
    same = agree(ours, ours)
    assert same.raw.value == same.raw.high == 1
    if len(set(ours)) > 1:
        assert same.kappa is not None
        assert same.kappa.value == same.kappa.high == 1 > same.kappa.low, "few rows are not certain"
    forth, back = agree(ours, theirs).kappa, agree(theirs, ours).kappa
    assert (forth is None) == (back is None)
    if forth is not None and back is not None:
        assert forth.value == pytest.approx(back.value)


def test_near_grades_count_for_more_where_grades_have_an_order() -> None:
    human = [1, 2, 3, 4, 5] * 6
    near, far = [2, 3, 4, 5, 5] * 6, [5, 4, 3, 2, 1] * 6
    assert agree(near, human).weights == "quadratic"
    graded, plain = agree(near, human).kappa, agree(near, human, weights="none").kappa
    assert graded is not None and plain is not None
    assert graded.value > 0.7 > 0.1 > plain.value
    against = agree(far, human).kappa
    assert against is not None
    assert against.value == pytest.approx(-1)


@pytest.mark.parametrize(
    ("judge", "human", "weights", "says"),
    [
        ([], [], None, "0 grades of the judge and 0 of people"),
        ([1], [1, 2], None, "1 grades of the judge and 2 of people"),
        (["a", "b"], ["a", "a"], "linear", "are no numbers, and linear weights need a distance. Use none"),
    ],
)
def test_what_cannot_be_compared_is_refused(judge: Any, human: Any, weights: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        agree(judge, human, weights=weights)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.sampled_from([0, 0.5, 1])), min_size=1, max_size=50))
def test_a_calibration_counts_every_row_once(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = both(pairs)
    seen = calibrate(ours, theirs)
    assert seen.positives + seen.negatives == len(pairs)
    assert 0 <= seen.accepted <= seen.positives and 0 <= seen.rejected <= seen.negatives
    assert seen.accepted + seen.negatives - seen.rejected == sum(score >= 0.5 for score in ours)
    assert (seen.sensitivity is None) == (seen.positives == 0)
    assert (seen.specificity is None) == (seen.negatives == 0)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
)
def test_a_corrected_mean_is_a_share_within_its_interval(
    judged: tuple[int, int], positive: tuple[int, int], negative: tuple[int, int]
) -> None:
    known = Calibration(accepted=positive[0], positives=positive[1], rejected=negative[0], negatives=negative[1])
    seen = corrected_mean(*judged, known)
    assert 0 <= seen.low <= seen.value <= seen.high <= 1


def test_a_judge_without_errors_needs_no_correction() -> None:
    known = Calibration(positives=5_000, accepted=5_000, negatives=5_000, rejected=5_000)
    seen, plain = corrected_mean(120, 200, known), wilson(120, 200)
    assert seen.value == pytest.approx(0.6)
    assert (seen.low, seen.high) == pytest.approx(plain, abs=0.005)


def test_a_judge_that_passes_everything_says_nothing() -> None:
    known = Calibration(positives=20, accepted=20, negatives=20, rejected=0)
    seen = corrected_mean(95, 100, known)
    assert seen.high - seen.low > 0.9


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity", "calibrated", "judged"),
    [(0.7, 0.9, 0.7, 60, 300), (0.4, 0.95, 0.5, 30, 300), (0.9, 0.9, 0.8, 100, 1_000), (0.5, 0.8, 0.8, 40, 100)],
)
def test_the_corrected_interval_holds_the_truth(
    truth: float, sensitivity: float, specificity: float, calibrated: int, judged: int
) -> None:
    """In 1,000 draws of people's grades and of judgements; the judge's own share misses it nearly always."""
    random = np.random.default_rng(7)
    passes = truth * sensitivity + (1 - truth) * (1 - specificity)
    held = plain_held = 0
    for _ in range(1_000):
        positives = int(random.binomial(calibrated, truth))
        known = Calibration(
            positives=positives,
            accepted=int(random.binomial(positives, sensitivity)),
            negatives=calibrated - positives,
            rejected=int(random.binomial(calibrated - positives, specificity)),
        )
        passed = int(random.binomial(judged, passes))
        seen, plain = corrected_mean(passed, judged, known), wilson(passed, judged)
        held += seen.low <= truth <= seen.high
        plain_held += plain.low <= truth <= plain.high
    assert held / 1_000 > 0.95 - 3 * (0.95 * 0.05 / 1_000) ** 0.5
    assert plain_held < held
