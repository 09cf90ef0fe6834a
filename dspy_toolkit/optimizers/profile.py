"""What `plan.probe` found out about a program; the choice of an optimizer rests on it."""

from __future__ import annotations

from pydantic import Field

from dspy_toolkit.store import Frozen

PASS = 0.5
"""The score from which a run counts as passed, and may become a demonstration."""


class Profile(Frozen):
    """What thirty runs showed."""

    train: int
    """Training rows."""
    val: int
    """Validation rows."""
    probed: int
    """Runs made."""
    baseline: float = Field(ge=0, le=1)
    """Mean score of the baseline."""
    pass_rate: float = Field(ge=0, le=1)
    """Share of runs that scored at least one half."""
    parse_failures: int
    metric_errors: int
    graded: bool
    """Whether scores other than 0 and 1 were seen."""
    feedback: bool
    """Whether the metric says what was wrong."""
    predictors: int
    labelled: bool = False
    """Whether the program has one predictor and the rows hold all its outputs: a trace then says no more than a row."""
    calls_per_run: float
    """Logical LM calls of one run."""
    prompt_tokens: float
    """Prompt tokens of one run."""
    completion_tokens: float
    """Reply tokens of one run that no cache answered."""
    demo_tokens: float = 0.0
    """About how many tokens a demonstration adds to a prompt."""
    seconds_per_call: float
    """Wall time over physical calls, many at once; 0 when all came from the cache."""
    usd_per_call: float = 0.0
    """Dollars over physical calls; 0 when all came from the cache, and for a model that has no price."""
    labels: int = 0
    """Labels of the last output of a program of one predictor, where it is a choice that an engine here can score; else 0."""
    training_seconds: float = 0.0
    """Predicted for one pass of an adapter's training over the training rows; 0 where there can be none."""
    training_tokens: float = 0.0
    """Tokens of one such pass."""
    training_note: str = "nobody looked whether its model can be trained"
    """Why no adapter can be trained; empty where one can."""
    reflector_ok: bool
    """Whether the reflection model wrote a usable instruction when asked."""
    reflector_note: str
