"""Running a program over a split: one score for each row, and what it cost.

Covered: a thread pool that keeps the engine's batch full. Replies that cannot be parsed and metrics that fail are told
from wrong answers: both are counted and scored 0. Per-row results go to the store. An error of the language model is
not a wrong answer: it ends the evaluation.

Not covered: retrying (the orchestrator's tasks do), comparing two reports (`gate.decide`), and permission to open a
sealed split (`gate.ledger`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.errors import DatasetError, MetricError, ToolkitError, causes
from dspy_toolkit.gate.intervals import mean_interval
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.metrics import Metric, score
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.store import Frozen, Ref, Store

if TYPE_CHECKING:
    import dspy
    import pandas as pd
    from dspy.adapters.base import Adapter

    from dspy_toolkit.lm.meter import MeteredLM

METRIC_ERRORS = 0.1
"""The share of rows whose metric may fail; with more, the metric is broken and its mean says nothing."""
SEEN = 200
"""Characters of an unparsable reply that a row keeps."""

Status = Literal["ok", "parse_failure", "metric_error"]


class Report(Frozen):
    """What a program scored on a split, and what that cost."""

    split: str
    mean: float = Field(ge=0, le=1)
    """Mean of all rows; parse failures and metric errors count as 0."""
    low: float
    """Lower end of the mean's 95 % interval."""
    high: float
    n: int
    """Rows."""
    parse_retries: int
    """Second calls made because a reply could not be parsed."""
    parse_failures: int
    """Rows without an answer for that reason."""
    metric_errors: int
    """Rows whose metric raised, or returned something that is not a score."""
    usage: Usage
    seconds: float
    """Wall time."""
    rows: Ref
    """Parquet, in the split's order: _row, _group, value, feedback, status, and prediction, expected, inputs as JSON."""


class RowScore(BaseModel):
    """The score of one row."""

    value: float = 0.0
    feedback: str = ""
    status: Status = "ok"
    prediction: str = "null"
    """The answer as JSON."""


def evaluate(
    program: dspy.Module,
    frame: pd.DataFrame,
    spec: DatasetSpec,
    metric: Metric,
    *,
    split: str,
    lm: MeteredLM,
    adapter: Adapter,
    store: Store,
    threads: int = 16,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run `program` on every row of `frame` and score the answers.

    Args:
        program: called as `program(**inputs)`, from many threads at once.
        frame: a split: the columns of `spec`, `_row` and `_group`.
        spec: which columns are inputs and outputs.
        metric: scores one answer in [0, 1].
        split: its name, for the report.
        lm: the language model; a copy of it with a fresh meter is used, so the report counts only this evaluation.
        adapter: how signatures become prompts.
        store: where the per-row table goes.
        threads: runs of the program at once.
        limit: logical LM calls allowed; None for no limit.
        progress: called in this thread with the rows done and all rows.

    Raises:
        DatasetError: the split has no rows.
        MetricError: the metric failed on more than 10 % of the rows; the message is that of the first.
        BudgetExhausted: `limit` is spent.
        ToolkitError: the model failed. Any other error of the program or the provider is raised unchanged, with a note
        that
            names the row. Rows that have not begun are dropped.
    """
    if frame.empty:
        raise DatasetError(f"The {split} split has no rows, so there is nothing to evaluate. Add rows to the dataset.")
    cases = examples(frame, spec, fields_of(program))
    metered = lm.metered(limit)
    began = time.monotonic()
    keys, groups = ([str(name) for name in frame[column]] for column in ("_row", "_group"))
    rows = score_rows(
        program, cases, metric, keys=keys, split=split, lm=metered, adapter=adapter, threads=threads, progress=progress
    )
    values = [row.value for row in rows]
    low, high = mean_interval(values, groups)
    meter = metered.meter
    return Report(
        split=split,
        mean=sum(values) / len(values),
        low=low,
        high=high,
        n=len(rows),
        parse_retries=meter.parse_retries,
        parse_failures=sum(row.status == "parse_failure" for row in rows),
        metric_errors=sum(row.status == "metric_error" for row in rows),
        usage=meter.usage,
        seconds=time.monotonic() - began,
        rows=store.save_frame(_table(keys, groups, rows, cases)),
    )


def score_rows(
    program: dspy.Module,
    cases: list[dspy.Example],
    metric: Metric,
    *,
    keys: list[str],
    split: str,
    lm: MeteredLM,
    adapter: Adapter,
    threads: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[RowScore]:
    """Run and score `cases` without keeping a report; the calls are charged to `lm`'s own meter.

    Args and errors are those of `evaluate`; `keys` are the rows' names in messages.
    """
    faults: list[BaseException] = []

    def run(index: int) -> RowScore:
        if faults:  # after a failure no further row begins
            raise faults[0]
        try:
            return _run(program, cases[index], metric, lm, adapter, keys[index])
        except BaseException as error:
            faults.append(error)
            raise

    results: dict[int, RowScore] = {}
    failed: dict[int, str] = {}
    with _pool(min(threads, len(cases))) as pool:
        futures = {pool.submit(run, index): index for index in range(len(cases))}
        for done, future in enumerate(as_completed(futures), start=1):
            index, row = futures[future], future.result()
            results[index] = row
            if row.status == "metric_error":
                failed[index] = row.feedback
                if len(failed) > METRIC_ERRORS * len(cases):
                    raise MetricError(
                        f"The metric failed on {len(failed)} of the first {done} rows of the {split} split, more than "
                        f"{METRIC_ERRORS:.0%} of its {len(cases)}. The first: {failed[min(failed)]}"
                    )
            if progress is not None:
                progress(done, len(cases))
    return [results[index] for index in range(len(cases))]


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what has not begun when an error leaves its block."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="evaluate")
    wait = True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False  # after Ctrl-C nobody waits for the rows in flight
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def _run(
    program: dspy.Module, case: dspy.Example, metric: Metric, lm: MeteredLM, adapter: Adapter, key: str
) -> RowScore:
    """One row, in a worker thread."""
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    prediction = None
    # A trace of its own: the shared default would hold on to every prediction of every thread.
    with dspy.context(lm=lm, adapter=adapter, trace=[]):
        try:
            prediction = program(**case.inputs())
            scored = score(metric, case, prediction, row=key)
        except Exception as error:  # isolation boundary of one example: sorted here, and counted or raised
            # The toolkit's own error in the chain: an engine that failed, a budget that is spent.
            faults = (
                one for one in causes(error) if isinstance(one, ToolkitError) and not isinstance(one, MetricError)
            )
            if fault := next(faults, None):
                raise fault from fault.__cause__
            if isinstance(error, AdapterParseError):
                reply = str(error.lm_response)[:SEEN]
                return RowScore(status="parse_failure", feedback=f"The reply cannot be read: {reply!r}")
            if isinstance(error, MetricError):
                return RowScore(status="metric_error", feedback=str(error), prediction=_text(prediction))
            error.add_note(f"while running the program on row {key}")
            raise
    return RowScore(value=scored.value, feedback=scored.feedback, prediction=_text(prediction))


def _table(keys: list[str], groups: list[str], rows: list[RowScore], cases: list[dspy.Example]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([row.model_dump() for row in rows])
    table.insert(0, "_row", keys)
    table.insert(1, "_group", groups)
    table["expected"] = [_text(case.labels()) for case in cases]
    table["inputs"] = [_text(case.inputs()) for case in cases]
    return table


def _text(value: Any) -> str:
    """JSON for people to read."""
    import dspy

    plain = value.toDict() if isinstance(value, dspy.Example) else value
    return json.dumps(plain, ensure_ascii=False, default=_as_json)


def _as_json(value: Any) -> Any:
    """What JSON does not know by itself; anything strange as its text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value.value if isinstance(value, Enum) else str(value)
