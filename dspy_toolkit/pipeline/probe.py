"""Looking at the program before anything is spent on it."""

from __future__ import annotations

from dspy_toolkit.optimizers import Profile
from dspy_toolkit.optimizers import probe as look
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.problem import problem_of
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.run import SearchInput


def probe(context: Context, given: SearchInput, progress: Progress | None = None) -> Profile:
    """Some thirty runs of the baseline on validation rows, and one try at reflection.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed.
    """
    check_unchanged(context, given.program)
    return look(problem_of(context, given), progress)
