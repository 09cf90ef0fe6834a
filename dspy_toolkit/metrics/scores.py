"""What a metric is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from pydantic import Field

from dspy_toolkit.store import Frozen

Metric: TypeAlias = Callable[..., Any]
"""`(example, prediction) -> bool | float | Score | dspy.Prediction(score=, feedback=)`; see the package's docstring."""


class Score(Frozen):
    """How good one answer is, and why."""

    value: float = Field(ge=0, le=1)
    """0 is worst, 1 is best."""
    feedback: str = ""
    """What was wrong and what would have been right, for the reflection model."""
    measures: dict[str, float] = Field(default={})
    """What else was measured of this answer, by name, such as the spread of several judgements. A report gives each
    one's mean over the rows that have it."""
