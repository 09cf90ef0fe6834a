"""One turn of one arm of a race: search with an allowance, then score the best program found on rows that no arm chose
by.

An arm run searches from the beginning. What an earlier run of the same arm asked comes from the cache of replies, so it
costs nothing again; the calls counted are the logical ones from the beginning, as if the arm had never stopped. On a
machine without that cache the run computes more and finds the same.

The arm `baseline` is the program before the search: it searches nothing.
"""

from __future__ import annotations

import logging
import time

from dspy_toolkit.errors import MetricError, OptimizerError, RequestRefused, ToolkitError
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS
from dspy_toolkit.optimizers.search.search import Progress, Search, Trial
from dspy_toolkit.optimizers.settings import OptimizerSettings
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.store import Frozen, Ref, digest
from dspy_toolkit.user_code import describe_error

log = logging.getLogger(__name__)

AT_FAULT = (MetricError, OptimizerError, RequestRefused)
"""The toolkit's errors that an arm itself brings about: a prompt that does not fit the model among them."""
BASELINE = "baseline"
"""The arm that searches nothing."""


class ArmRun(Frozen):
    """What one arm is to do in one round."""

    arm: str
    settings: OptimizerSettings
    """The settings of its optimizer."""
    lm_calls: int
    """Logical calls that the search may spend, counted from its beginning."""
    rows: int
    """Validation rows that the search chooses by: the first of the sample of the split."""
    holdout_rows: int
    """Validation rows after those, on which the arms are compared."""


class ArmRunResult(Frozen):
    """What an arm found."""

    arm: str
    error: str = ""
    """Why there is no program; everything below is empty then."""
    program: Ref | None = None
    """The best program's state."""
    prompt: str = ""
    """A hash of the part of the program that reaches the model."""
    values: tuple[float, ...] = ()
    """Its score in [0, 1] on each holdout row."""
    groups: tuple[str, ...] = ()
    """The group of near-duplicates that each holdout row belongs to."""
    search_calls: int = 0
    """Logical calls of the search, from its beginning."""
    holdout_calls: int = 0
    """Logical calls for scoring the holdout rows."""
    usage: Usage = Usage()
    """Of search and scoring together."""
    seconds: float = 0.0
    """Wall time."""
    trials: tuple[Trial, ...] = ()


def run_arm(problem: Problem, arm_run: ArmRun, progress: Progress | None = None) -> ArmRunResult:
    """Search, then score. An error of the optimizer itself becomes the result: `error` says what it was.

    Raises:
        ToolkitError: the model failed, which says nothing about the arm; or the baseline cannot be scored.
    """
    began = time.monotonic()
    try:
        search = None
        if arm_run.arm != BASELINE:
            search = run_search(problem, arm_run.arm, arm_run.settings, arm_run.lm_calls, arm_run.rows, progress)
        best = problem.program if search is None else search.best or problem.program
        holdout = problem.val_sample(arm_run.rows + arm_run.holdout_rows).iloc[arm_run.rows :]
        lm = problem.connection.lm.metered()
        rows = score_rows(
            best,
            problem.cases(holdout),
            problem.metric,
            keys=[str(key) for key in holdout["_row"]],
            split="val",
            lm=lm,
            adapter=problem.connection.adapter,
            threads=problem.threads,
        )
    except Exception as error:  # isolation boundary: one arm of a race
        # A model that fails would fail every arm, and may be a transient error; without the baseline there is no race.
        model_failed = isinstance(error, ToolkitError) and not isinstance(error, AT_FAULT)
        if model_failed or arm_run.arm == BASELINE:
            raise
        log.warning("The arm %s of the race failed: %s", arm_run.arm, describe_error(error))
        return ArmRunResult(arm=arm_run.arm, error=describe_error(error), seconds=time.monotonic() - began)
    searched = Usage() if search is None else search.meter.usage
    scored = lm.meter.usage
    return ArmRunResult(
        arm=arm_run.arm,
        program=problem.store.save_json(state_of(best)),
        prompt=digest(prompt_of(best)),
        values=tuple(row.value for row in rows),
        groups=tuple(str(group) for group in holdout["_group"]),
        search_calls=searched.lm_calls,
        holdout_calls=scored.lm_calls,
        usage=searched + scored,
        seconds=time.monotonic() - began,
        trials=() if search is None else tuple(search.trials),
    )


def run_search(
    problem: Problem,
    optimizer: str,
    settings: OptimizerSettings,
    lm_calls: int,
    val_rows: int,
    progress: Progress | None,
) -> Search:
    """One optimizer's search, run to its end.

    Args:
        settings: of the optimizer.
        lm_calls: logical calls that it may spend.
        val_rows: how many validation rows it chooses by.
    """
    program, start, compared = problem.program, problem.start, problem.val_sample(val_rows)
    search = Search(
        program=program,
        train=problem.cases(problem.train),
        val=problem.cases(compared),
        val_keys=[str(key) for key in compared["_row"]],
        metric=problem.metric,
        connection=problem.connection,
        seed=problem.seed,
        threads=problem.threads,
        lm_calls=lm_calls,
        name=optimizer,
        progress=progress,
    )
    if start is not None and prompt_of(start.program) != prompt_of(program):
        search.begin_from(start.program, start.label)
    if not search.exhausted:
        OPTIMIZERS[optimizer].search(search, settings)
    if not search.exhausted:
        search.score_baseline()
    return search
