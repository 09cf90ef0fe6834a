"""The front of score against tokens and seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.metrics import Objectives, pareto_front

FEW = st.integers(0, 4)
POINTS = st.lists(st.builds(Objectives, FEW, FEW, FEW), max_size=25)


def front(points: list[Objectives]) -> list[Objectives]:
    return pareto_front(points, lambda point: point)


def beats(one: Objectives, other: Objectives) -> bool:
    return (
        one.score >= other.score
        and (one.tokens or 0) <= (other.tokens or 0)
        and (one.seconds or 0) <= (other.seconds or 0)
        and one != other
    )


def test_a_front() -> None:
    trials = [("dear", 0.9, 900), ("cheap", 0.6, 100), ("bad", 0.5, 500), ("middle", 0.8, 400), ("same", 0.8, 400)]
    kept = pareto_front(trials, lambda trial: Objectives(trial[1], trial[2]))
    assert [name for name, _, _ in kept] == ["dear", "cheap", "middle", "same"]
    assert [name for name, _, _ in pareto_front(trials, lambda trial: Objectives(trial[1]))] == ["dear"]


@given(POINTS)
def test_what_stays_is_beaten_by_none_and_what_goes_by_one_that_stays(points: list[Objectives]) -> None:
    kept = front(points)
    assert all(not beats(other, own) for own in kept for other in points)
    assert all(any(beats(own, gone) for own in kept) for gone in points if gone not in kept)


@given(POINTS)
def test_the_order_stays_and_a_second_time_changes_nothing(points: list[Objectives]) -> None:
    kept = front(points)
    assert kept == [point for point in points if point in kept]
    assert front(kept) == kept
    assert bool(kept) == bool(points)


@given(POINTS, st.data())
def test_what_is_not_known_of_every_point_decides_nothing(points: list[Objectives], data: Any) -> None:
    if not points:
        return
    unknown = data.draw(st.integers(0, len(points) - 1))
    holed = [point._replace(seconds=None) if n == unknown else point for n, point in enumerate(points)]
    without = front([point._replace(seconds=None) for point in points])
    assert [point._replace(seconds=None) for point in front(holed)] == without


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="holds NaN"):
        front([Objectives(float("nan"), 1, 1)])
