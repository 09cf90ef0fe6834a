"""Confidence beside scores: the bins, the error, and what counts as a confidence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.report.calibration import calibration, of_pairs
from dspy_toolkit.report.words import percent
from tests.report.made import row, table

SHARES = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=60))
def test_bins_hold_every_row_once_and_the_error_is_a_share(pairs: list[tuple[float, float]]) -> None:
    found = of_pairs(pairs)
    assert sum(each.rows for each in found.bins) == found.rows == len(pairs)
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in found.bins)
    assert 0 <= found.error <= 1
    # It is at least how far the means are apart.
    apart = abs(sum(c for c, _ in pairs) - sum(s for _, s in pairs)) / len(pairs)
    assert found.error >= apart - 1e-9


def test_the_error_of_some_rows_worked_out_by_hand() -> None:
    found = of_pairs([(0.95, 1.0), (0.95, 0.0), (0.15, 0.0), (1.0, 1.0)])
    assert [(each.low, each.rows) for each in found.bins] == [(0.1, 1), (0.9, 3)]
    assert found.error == pytest.approx((1 * 0.15 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)


@pytest.mark.parametrize("said", [None, "high", True, 1.5, -0.1])
def test_what_is_no_confidence_is_left_out(said: Any) -> None:
    sure = {"label": "red", "confidence": 0.5}
    other = {"label": "red"} if said is None else {"label": "red", "confidence": said}
    found = calibration(
        table([row("a", 1, prediction=sure), row("b", 1, prediction=other), row("c", 0, prediction=None)])
    )
    assert found is not None and found.rows == 1
    assert calibration(table([row("a", 1, prediction=other)])) is None


def test_what_abstaining_would_leave_is_told() -> None:
    pairs = [(0.9, 1.0), (0.6, 1.0), (0.5, 0.0), (0.2, 0.0)]
    facts = dict(of_pairs(pairs, 0.6).facts)
    assert facts[f"Answered, at a confidence of {percent(0.6)} or more"] == "2 of 4"
    assert facts["Mean score of the answered rows"] == percent(1)
    assert dict(of_pairs(pairs, 0.95).facts)["Mean score of the answered rows"] == "there are none"
    assert not any("Answered" in name for name, _ in of_pairs(pairs).facts)
