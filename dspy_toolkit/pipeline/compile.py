"""Searching for a better program on the training and validation rows."""

from __future__ import annotations

from dspy_toolkit.optimizers import Compiled, compile_program
from dspy_toolkit.optimizers.race.arm_run import ArmRunResult
from dspy_toolkit.optimizers.race.arm_run import run_arm as run_one_arm
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.problem import problem_of
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.run import ArmInput, CompileInput


def compile(context: Context, given: CompileInput, progress: Progress | None = None) -> Compiled:  # noqa: A001
    """Search as chosen. It is given two of the three splits.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed. Calling again repeats what was done from the cache of replies, and goes on.
    """
    check_unchanged(context, given.program)
    return compile_program(problem_of(context, given), given.choice, profile=given.profile, progress=progress)


def run_arm(context: Context, given: ArmInput, progress: Progress | None = None) -> ArmRunResult:
    """One turn of one arm of a race; errors as of `compile`."""
    check_unchanged(context, given.program)
    return run_one_arm(problem_of(context, given), given.arm_run, progress)
