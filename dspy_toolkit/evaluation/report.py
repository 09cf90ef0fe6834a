"""What an evaluation gives back: a report of the split, and a score for each row."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.store import Frozen, Ref

Status = Literal["ok", "parse_failure", "metric_error", "prompt_too_long", "request_refused", "program_error"]
"""`ok`, or why the row scores 0: the reply could not be read, the metric failed, the prompt does not fit the model, the
model refused the request for another reason, the program raised.
"""
BAD_ROW: frozenset[Status] = frozenset({"prompt_too_long", "request_refused", "program_error"})
"""What `Report.errors` counts."""


class Report(Frozen):
    """What a program scored on a split, and what that cost."""

    split: str
    mean: float = Field(ge=0, le=1)
    """Mean of all rows; whatever has no score counts as 0."""
    low: float
    """Lower end of the mean's 95 % interval."""
    high: float
    n: int
    """Rows."""
    repeats: int = 1
    """Runs of each row. Its score is their mean, and the counts below are of runs."""
    parse_retries: int
    """Second calls made because a reply could not be parsed."""
    parse_failures: int
    """Runs without an answer for that reason."""
    metric_errors: int
    """Runs whose metric raised, or returned something that is not a score."""
    errors: int = 0
    """Runs whose prompt did not fit or was refused, or whose program raised."""
    truncated: int = 0
    """Replies that the length cut, of the program's calls."""
    measures: dict[str, float] = Field(default={})
    """What the metric measured beside the score, the mean over the runs that have it: see `Score.measures`."""
    usage: Usage
    """Of the program."""
    judge_usage: Usage = Usage()
    """Of what the metric asked."""
    seconds: float
    """Wall time."""
    rows: Ref
    """Parquet, one line a row in the split's order: _row, _group, value (the mean of its runs), feedback, status,
    prediction, measures; values (the score of each run), expected, inputs, as JSON. With repeats, feedback, status and
    prediction are those of the first run.
    """


class RowScore(BaseModel):
    """The score of one run of one row."""

    value: float = 0.0
    feedback: str = ""
    status: Status = "ok"
    prediction: str = "null"
    """The answer as JSON."""
    measures: dict[str, float] = Field(default={})
    """What the metric measured beside the score."""
