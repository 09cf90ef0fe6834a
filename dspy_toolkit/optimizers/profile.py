"""What a look at a program showed: what the choice of an optimizer rests on. `plan.probe` looks."""

from __future__ import annotations

from pydantic import Field

from dspy_toolkit.store import Frozen

PASS = 0.5
"""The score from which a run counts as passed (a demonstration may be made of it)."""


class Profile(Frozen):
    """What thirty runs showed."""

    train: int
    """Rows to learn from."""
    val: int
    """Rows to choose by."""
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
    """Whether the rows hold all that the program's one step writes: its trace says no more than a row does."""
    calls_per_run: float
    """Logical LM calls of one run."""
    prompt_tokens: float
    """Of one run."""
    completion_tokens: float
    """Of one run that no cache answered."""
    demo_tokens: float = 0.0
    """About how many a demonstration adds to a prompt."""
    seconds_per_call: float
    """Wall time over physical calls, many at once; 0 when all came from the cache."""
    reflector_ok: bool
    """Whether the reflection model wrote a usable instruction when asked."""
    reflector_note: str
