"""Searching for a better program on the training and validation rows."""

from __future__ import annotations

from dspy_toolkit.optimizers import Compiled, compile_program
from dspy_toolkit.optimizers.pool.scoring import Runner, Scored, score_job
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.problem import problem_of
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.run import CompileInput, ScoreInput


def compile(  # noqa: A001
    context: Context, given: CompileInput, progress: Progress | None = None, elsewhere: Runner | None = None
) -> Compiled:
    """Search as chosen. It is given two of the three splits. `elsewhere` scores candidates on workers.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed. Calling again repeats what was done from the cache of replies, and goes on.
    """
    check_unchanged(context, given.program)
    problem = problem_of(context, given)
    return compile_program(problem, given.choice, profile=given.profile, progress=progress, elsewhere=elsewhere)


def score_candidate(context: Context, given: ScoreInput, progress: Progress | None = None) -> Scored:
    """Score one candidate on some validation rows; errors as of `compile`."""
    check_unchanged(context, given.program)
    return score_job(problem_of(context, given), given.job)
