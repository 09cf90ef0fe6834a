"""A measured value with its interval."""

from __future__ import annotations

from dspy_toolkit.store import Frozen


class Estimate(Frozen):
    """A value, and the two ends of its 95 % interval, in the same unit."""

    value: float
    low: float
    high: float
