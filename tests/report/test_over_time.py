"""The axis of a project's scores over time: every score is on it, between round numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.report.over_time import BOTTOM, HEIGHT, TOP, _Up

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(scores)
def test_every_score_has_its_place_in_order(values: list[float]) -> None:
    axis = _Up(values)
    assert 0 <= axis.low <= min(values) + 1e-9 and max(values) - 1e-9 <= axis.high <= 1
    assert axis.low < axis.high and 2 <= axis.frame().count("<line") <= 8
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places, reverse=True)
    assert all(TOP - 1e-6 <= place <= HEIGHT - BOTTOM + 1e-6 for place in places)
