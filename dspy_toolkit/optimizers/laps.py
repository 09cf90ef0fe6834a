"""One turn of one arm of a race: search with an allowance, then score the best program found on rows that no arm chose by.

A lap begins its search from the beginning. What an earlier lap of the same arm did comes from the cache of replies, so that
it costs nothing again; what it counts are logical calls from the beginning, as if it had never stopped. A lap that another
machine runs, without that cache, computes more and finds the same.

The arm `none` is the program as it came: it searches nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.errors import BudgetExhausted, MetricError, OptimizerError, RequestRefused, ToolkitError
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.metrics import Metric
from dspy_toolkit.optimizers.catalog import OPTIMIZERS
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.search import Progress, Search, Stopwatch, Trial
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.signatures import fields_of
from dspy_toolkit.sources import explain
from dspy_toolkit.store import Ref, Store, Value, digest

if TYPE_CHECKING:
    import dspy
    import pandas as pd

log = logging.getLogger(__name__)

AT_FAULT = (MetricError, OptimizerError, RequestRefused)
"""The toolkit's errors that an arm itself brings about: a prompt that does not fit the model among them."""
NONE = "none"
"""The arm that searches nothing."""


class Lap(Value):
    """What an arm is to do."""

    arm: str
    settings: dict[str, Any]
    """Of its optimizer."""
    lm_calls: int
    """Logical calls that the search may spend, from its beginning."""
    rows: int
    """Validation rows that it chooses by: the first of the split's sample."""
    items: int
    """Validation rows after those, on which the arms are compared."""


class LapResult(Value):
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
    physical_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    trials: tuple[Trial, ...] = ()


def run_lap(
    program: dspy.Module,
    lap: Lap,
    train: pd.DataFrame,
    val: pd.DataFrame,
    spec: DatasetSpec,
    metric: Metric,
    connection: Connection,
    store: Store,
    *,
    seed: int = 0,
    threads: int = 16,
    progress: Progress | None = None,
) -> LapResult:
    """Run one lap. What the optimizer itself does wrong is its result.

    Args:
        program: as it came; it is not changed.
        train, val: two splits. The third is not asked for.

    Raises:
        ToolkitError: the model failed; that is nothing that speaks against the arm.
    """
    watch = Stopwatch()
    try:
        search = _search(program, lap, train, val, spec, metric, connection, seed, threads, progress)
        best = program if search is None else search.best or program
        items = sample_rows(val, lap.rows + lap.items, seed).iloc[lap.rows :]
        lm = connection.lm.metered()
        rows = score_rows(
            best,
            examples(items, spec, fields_of(program)),
            metric,
            keys=[str(key) for key in items["_row"]],
            split="val",
            lm=lm,
            adapter=connection.adapter,
            threads=threads,
        )
    except Exception as error:  # isolation boundary: one arm of a race
        # The model's failure is everybody's, and may pass; so is one of the program as it came. The rest speaks against the arm.
        model_failed = isinstance(error, ToolkitError) and not isinstance(error, AT_FAULT)
        if model_failed or lap.arm == NONE:
            raise
        log.warning("The arm %s of the race failed: %s", lap.arm, explain(error))
        return LapResult(arm=lap.arm, error=explain(error), seconds=float(watch))
    meters = [lm.meter, *([] if search is None else [search.meter])]
    return LapResult(
        arm=lap.arm,
        program=store.save_json(state_of(best)),
        prompt=digest(prompt_of(best)),
        values=tuple(row.value for row in rows),
        groups=tuple(str(group) for group in items["_group"]),
        search_calls=0 if search is None else search.meter.logical,
        item_calls=lm.meter.logical,
        physical_calls=sum(meter.physical for meter in meters),
        prompt_tokens=sum(meter.prompt_tokens for meter in meters),
        completion_tokens=sum(meter.completion_tokens for meter in meters),
        seconds=float(watch),
        trials=() if search is None else tuple(search.trials),
    )


def _search(
    program: dspy.Module,
    lap: Lap,
    train: pd.DataFrame,
    val: pd.DataFrame,
    spec: DatasetSpec,
    metric: Metric,
    connection: Connection,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> Search | None:
    if lap.arm == NONE:
        return None
    return run_search(
        program,
        lap.arm,
        lap.settings,
        lap.lm_calls,
        train,
        sample_rows(val, lap.rows, seed),
        spec,
        metric,
        connection,
        seed=seed,
        threads=threads,
        progress=progress,
    )


def run_search(
    program: dspy.Module,
    optimizer: str,
    settings: dict[str, Any],
    lm_calls: int,
    train: pd.DataFrame,
    compared: pd.DataFrame,
    spec: DatasetSpec,
    metric: Metric,
    connection: Connection,
    *,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> Search:
    """One optimizer's search, run to its end.

    Args:
        settings: of the optimizer.
        lm_calls: logical calls that it may spend.
        compared: the validation rows that it chooses by.
    """
    fields = fields_of(program)
    search = Search(
        program=program,
        train=examples(train, spec, fields),
        val=examples(compared, spec, fields),
        val_keys=[str(key) for key in compared["_row"]],
        metric=metric,
        connection=connection,
        seed=seed,
        threads=threads,
        lm_calls=lm_calls,
        name=optimizer,
        progress=progress,
    )
    try:
        OPTIMIZERS[optimizer].search(search, settings)
    except BudgetExhausted:
        search.exhausted = True
    if not search.trials and not search.exhausted:
        search.score(program.deepcopy(), "unchanged")
    return search
