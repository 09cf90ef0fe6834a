"""The Pareto front of several programs: score against tokens and seconds.

Covered: any number of points of any kind, also with unknown objectives. Not covered: choosing a point of the front, and
whether two scores differ by more than chance (`dspy_toolkit.gate.decide`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Objectives(NamedTuple):
    """What a point is judged by."""

    score: float
    """Higher is better."""
    tokens: float | None = None
    """Lower is better; None when it was not measured."""
    seconds: float | None = None
    """Lower is better; None when it was not measured, as when a cache gave every reply."""


def pareto_front(points: Iterable[T], of: Callable[[T], Objectives]) -> list[T]:
    """The points that no other dominates, in the given order.

    One point dominates another when it is at least as good in every objective and better in one; of points that are
    equal in all, all stay. Tokens, or seconds, that are not known of every point are not compared at all.

    Args:
        points: of any kind.
        of: a point's objectives, such as
            `lambda trial: Objectives(trial.val_mean, trial.tokens or None, trial.seconds or None)`.

    Raises:
        ValueError: an objective is NaN.
    """
    candidates = list(points)
    judged = [of(point) for point in candidates]
    for objectives in judged:
        if any(value is not None and math.isnan(value) for value in objectives):
            raise ValueError(f"{objectives} holds NaN. Leave the point out, or give None for what was not measured.")
    compared = [axis for axis in ("tokens", "seconds") if all(getattr(one, axis) is not None for one in judged)]
    # Everything as "higher is better".
    values = [(one.score, *(-getattr(one, axis) for axis in compared)) for one in judged]
    return [
        point
        for point, own in zip(candidates, values, strict=True)
        if not any(_dominates(other, own) for other in values)
    ]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))
