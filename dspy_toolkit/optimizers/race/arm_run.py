"""One turn of one arm of a race: search with an allowance, then score the best program found on rows that no arm chose by.

A lap begins its search from the beginning. What an earlier lap of the same arm did comes from the cache of replies, so that
it costs nothing again; what it counts are logical calls from the beginning, as if it had never stopped. A lap that another
machine runs, without that cache, computes more and finds the same.

The arm `baseline` is the program before: it searches nothing.
"""

from __future__ import annotations

import logging

from dspy_toolkit.errors import MetricError, OptimizerError, RequestRefused, ToolkitError
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS
from dspy_toolkit.optimizers.search.search import Progress, Search, Stopwatch, Trial
from dspy_toolkit.optimizers.settings import OptimizerSettings
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.store import Frozen, Ref, digest
from dspy_toolkit.user_code import explain

log = logging.getLogger(__name__)

AT_FAULT = (MetricError, OptimizerError, RequestRefused)
"""The toolkit's errors that an arm itself brings about: a prompt that does not fit the model among them."""
BASELINE = "baseline"
"""The arm that searches nothing."""


class ArmRun(Frozen):
    """What an arm is to do."""

    arm: str
    settings: OptimizerSettings
    """Of its optimizer."""
    lm_calls: int
    """Logical calls that the search may spend, from its beginning."""
    rows: int
    """Validation rows that it chooses by: the first of the split's sample."""
    items: int
    """Validation rows after those, on which the arms are compared."""


class ArmRunResult(Frozen):
    """What it came to."""

    arm: str
    error: str = ""
    """Why there is no program; everything below is empty then."""
    program: Ref | None = None
    """The best program's state."""
    prompt: str = ""
    """A hash of what of the program reaches the model."""
    values: tuple[float, ...] = ()
    """Its score in [0, 1] on each item."""
    groups: tuple[str, ...] = ()
    """The group of near duplicates that each item belongs to."""
    search_calls: int = 0
    """Logical, from the search's beginning."""
    item_calls: int = 0
    """Logical, of scoring the items."""
    usage: Usage = Usage()
    """Of both."""
    seconds: float = 0.0
    """Wall time."""
    trials: tuple[Trial, ...] = ()


def run_arm(problem: Problem, lap: ArmRun, progress: Progress | None = None) -> ArmRunResult:
    """Run one lap. What the optimizer itself does wrong is its result.

    Raises:
        ToolkitError: the model failed; that is nothing that speaks against the arm.
    """
    watch = Stopwatch()
    try:
        search = None
        if lap.arm != BASELINE:
            search = run_search(problem, lap.arm, lap.settings, lap.lm_calls, lap.rows, progress)
        best = problem.program if search is None else search.best or problem.program
        items = problem.val_sample(lap.rows + lap.items).iloc[lap.rows :]
        lm = problem.connection.lm.metered()
        rows = score_rows(
            best,
            problem.cases(items),
            problem.metric,
            keys=[str(key) for key in items["_row"]],
            split="val",
            lm=lm,
            adapter=problem.connection.adapter,
            threads=problem.threads,
        )
    except Exception as error:  # isolation boundary: one arm of a race
        # The model's failure is everybody's, and may pass; so is one of the baseline. The rest speaks against the arm.
        model_failed = isinstance(error, ToolkitError) and not isinstance(error, AT_FAULT)
        if model_failed or lap.arm == BASELINE:
            raise
        log.warning("The arm %s of the race failed: %s", lap.arm, explain(error))
        return ArmRunResult(arm=lap.arm, error=explain(error), seconds=float(watch))
    searched = Usage() if search is None else search.meter.usage
    scored = lm.meter.usage
    return ArmRunResult(
        arm=lap.arm,
        program=problem.store.save_json(state_of(best)),
        prompt=digest(prompt_of(best)),
        values=tuple(row.value for row in rows),
        groups=tuple(str(group) for group in items["_group"]),
        search_calls=searched.lm_calls,
        item_calls=scored.lm_calls,
        usage=searched + scored,
        seconds=float(watch),
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
