"""Whether validation speaks for a candidate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.gate import worth_opening
from dspy_toolkit.gate.validation import paired_z

ROWS = st.lists(st.tuples(*[st.sampled_from([0, 0.25, 1])] * 2, st.integers(0, 20)), min_size=1, max_size=30)


def test_of_right_and_wrong_answers_z_is_mcnemars():
    ours, theirs = [1] * 9 + [0] * 4 + [1] * 20, [0] * 9 + [1] * 4 + [1] * 20
    assert paired_z(ours, theirs, range(33)) == pytest.approx((9 - 4) / 13**0.5)


@given(ROWS)
def test_swapping_the_programs_turns_z_over_and_copies_of_rows_in_a_group_change_nothing(rows):
    ours, theirs, groups = (list(column) for column in zip(*rows, strict=True))
    z = paired_z(ours, theirs, groups)
    assert paired_z(theirs, ours, groups) == pytest.approx(-z)
    assert paired_z(ours * 2, theirs * 2, groups * 2) == pytest.approx(z)


@pytest.mark.parametrize(
    ("wins", "losses", "tokens", "worth", "said"),
    [
        (1, 0, 1.0, True, "Better on validation: +2.0 points on 50 validation rows, z = 1.00."),
        (5, 3, 1.0, False, "is not shown to be better on validation; the sealed test was not opened"),
        (5, 3, 0.9, True, "Not worse on validation, with 10% fewer prompt tokens: +4.0 points"),
        (3, 3, 0.5, True, "Not worse on validation, with 50% fewer prompt tokens: +0.0 points"),
        (3, 4, 0.5, False, "is worse on validation; the sealed test was not opened: -2.0 points on 50"),
        (0, 0, 1.0, False, "z = 0.00, and it opens from 1"),
    ],
)
def test_what_opens_the_sealed_rows(wins, losses, tokens, worth, said):
    same = 50 - wins - losses
    ours, theirs = [1] * wins + [0] * losses + [1] * same, [0] * wins + [1] * losses + [1] * same
    found = worth_opening(ours, theirs, range(50), tokens_ratio=tokens)
    assert found.worth is worth
    assert said in found.reason


def test_one_in_six_equal_candidates_is_shown_the_sealed_rows():
    random = np.random.default_rng(0)
    shown = [worth_opening(*random.integers(0, 2, (2, 100)), range(100)).worth for _ in range(600)]
    assert np.mean(shown) == pytest.approx(1 / 6, abs=0.05)
