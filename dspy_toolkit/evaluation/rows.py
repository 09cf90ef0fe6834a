"""Running a program on rows, from many threads at once, which keep the engine's batch full, and scoring the answers.

A run that has no score is a 0 and says why (`Status`): a reply that cannot be read, a metric that fails, a prompt that
does not fit the model, an exception of the program. One bad row does not end an evaluation; more than a tenth of them
do, with one error that names the first. A model that fails, a budget that is spent and Ctrl-C say nothing about a row:
they end the evaluation at once.

What the metric asks of a model is charged to the meter's `judge`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from dspy_toolkit.errors import MetricError, ProgramError, PromptTooLong, RequestRefused, ToolkitError, causes
from dspy_toolkit.evaluation.report import RowScore, Status
from dspy_toolkit.metrics import Metric, score
from dspy_toolkit.user_code import describe_error

if TYPE_CHECKING:
    import dspy
    from dspy.adapters.base import Adapter

    from dspy_toolkit.lm.meter import MeteredLM

METRIC_ERRORS = 0.1
"""The share of rows whose metric may fail; with more, the metric is broken and its mean says nothing."""
ROW_ERRORS = 0.1
"""The share of rows whose prompt may not fit, or whose program may raise."""
SEEN = 200
"""Characters of an unparsable reply that a row keeps."""

Progress = Callable[[int, int], None]
"""Told the runs done and all runs, in the caller's thread."""


class RowRun(NamedTuple):
    """One run of the program: a row, its name in messages, and the LM that answers."""

    case: dspy.Example
    key: str
    lm: MeteredLM


class _Kind(NamedTuple):
    """Statuses that are tolerated together, up to a share of the runs."""

    share: float
    failed: dict[int, tuple[RowScore, Exception]]
    """By the run's place: what it scored, and what went wrong."""


def score_rows(
    program: dspy.Module,
    cases: Sequence[dspy.Example],
    metric: Metric,
    *,
    keys: Sequence[str],
    split: str,
    lm: MeteredLM,
    adapter: Adapter,
    threads: int = 16,
    progress: Progress | None = None,
) -> list[RowScore]:
    """Run and score `cases` without keeping a report; the calls are charged to `lm`'s own meter.

    Args:
        keys: the rows' names in messages.
        split: its name in messages.

    Raises:
        MetricError: the metric failed on more than 10 % of the rows; the message is that of the first.
        RequestRefused, ProgramError: more than 10 % of the rows cannot be run: their prompts do not fit the model
            (PromptTooLong) or it refuses them, or the program raises. The kind is that of the first.
        BudgetExhausted: the meter's limit is reached.
        ToolkitError, LMError: the model failed. Rows that have not begun are dropped.
    """
    runs = [RowRun(case, key, lm) for case, key in zip(cases, keys, strict=True)]
    return score_runs(
        program, runs, metric, split=split, unit="rows", lm=lm, adapter=adapter, threads=threads, progress=progress
    )


def score_runs(
    program: dspy.Module,
    runs: Sequence[RowRun],
    metric: Metric,
    *,
    split: str,
    unit: str,
    lm: MeteredLM,
    adapter: Adapter,
    threads: int,
    progress: Progress | None,
) -> list[RowScore]:
    """`score_rows`, with an LM for each run; `lm` is the one that the metric sees, and charges; messages count in `unit`."""
    judge = lm.copy()
    judge.meter = lm.meter.judge
    faults: list[BaseException] = []

    def one(index: int) -> tuple[RowScore, Exception | None]:
        if faults:  # after a failure no further run begins
            raise faults[0]
        try:
            return _run(program, runs[index], metric, judge, adapter)
        except BaseException as error:
            faults.append(error)
            raise

    results: dict[int, RowScore] = {}
    broken = {"metric_error": _Kind(METRIC_ERRORS, {})}
    broken |= dict.fromkeys(("prompt_too_long", "request_refused", "program_error"), _Kind(ROW_ERRORS, {}))
    with _pool(min(threads, len(runs))) as pool:
        # In this thread's context each: what listens to programs here, such as a trace, listens there too.
        futures = {pool.submit(copy_context().run, one, index): index for index in range(len(runs))}
        for done, future in enumerate(as_completed(futures), start=1):
            index, (row, error) = futures[future], future.result()
            results[index] = row
            if error is not None and (kind := broken.get(row.status)) is not None:
                kind.failed[index] = row, error
                _tolerate(kind, runs, done, f"{unit} of the {split} split")
            if progress is not None:
                progress(done, len(runs))
    return [results[index] for index in range(len(runs))]


def _tolerate(kind: _Kind, runs: Sequence[RowRun], done: int, where: str) -> None:
    """Raise the error that ends the evaluation, once more runs of a kind have failed than are tolerated."""
    failed = kind.failed
    if len(failed) <= kind.share * len(runs):
        return
    first = min(failed)
    row, error = failed[first]
    who, as_error = {
        "metric_error": ("The metric failed on", MetricError),
        "prompt_too_long": ("The model cannot be given the prompts of", PromptTooLong),
        "request_refused": ("The model refused", RequestRefused),
        "program_error": ("The program failed on", ProgramError),
    }[row.status]
    # What a metric's error says names its row.
    named = "" if row.status == "metric_error" else f", row {runs[first].key}"
    advice = " Correct the program, or these rows." if row.status == "program_error" else ""
    raise as_error(
        f"{who} {len(failed)} of the first {done} {where}, more than {kind.share:.0%} of its "
        f"{len(runs)}. The first{named}: {row.feedback}{advice}"
    ) from error


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
    program: dspy.Module, run: RowRun, metric: Metric, judge: MeteredLM, adapter: Adapter
) -> tuple[RowScore, Exception | None]:
    """One run, in a worker thread: its score, and what went wrong where nothing could be scored."""
    import dspy

    # A trace of its own: the shared default would hold on to every prediction of every thread.
    with dspy.context(lm=run.lm, adapter=adapter, trace=[]):
        try:
            prediction = program(**run.case.inputs())
        except Exception as error:  # isolation boundary of one row: sorted there, and counted or raised
            status, said = _program_fault(error, run.key)
            return RowScore(status=status, feedback=said), error
        try:
            with dspy.context(lm=judge):
                scored = score(metric, run.case, prediction, row=run.key)
        except Exception as error:  # the same boundary
            return RowScore(status="metric_error", feedback=_metric_fault(error), prediction=as_text(prediction)), error
    found = RowScore(
        value=scored.value, feedback=scored.feedback, prediction=as_text(prediction), measures=scored.measures
    )
    return found, None


def _program_fault(error: Exception, key: str) -> tuple[Status, str]:
    """What an exception of the program makes of its row. Raises what is no fault of the row."""
    from dspy.utils.exceptions import AdapterParseError, LMError

    own = _own_errors(error)
    if fault := next((one for one in own if not isinstance(one, RequestRefused)), None):
        raise fault from fault.__cause__
    if isinstance(error, AdapterParseError):
        return "parse_failure", f"The reply cannot be read: {str(error.lm_response)[:SEEN]!r}"
    if own:
        return "prompt_too_long" if isinstance(own[0], PromptTooLong) else "request_refused", str(own[0])
    if any(isinstance(cause, LMError) for cause in causes(error)):
        error.add_note(f"while running the program on row {key}")
        raise error
    return "program_error", f"The program raised {describe_error(error)}."


def _metric_fault(error: Exception) -> str:
    """What an exception under the metric says of its row. Raises what is no fault of the row."""
    own = _own_errors(error)
    if fault := next((one for one in own if not isinstance(one, RequestRefused)), None):
        raise fault from fault.__cause__
    if isinstance(error, MetricError):
        return str(error)
    if own:  # the prompt of a judge that does not fit its model
        return f"The metric's own request was refused. {own[0]}"
    raise error


def _own_errors(error: Exception) -> list[ToolkitError]:
    """The toolkit's errors in the chain behind `error`: an engine that failed, a budget that is spent."""
    return [one for one in causes(error) if isinstance(one, ToolkitError) and not isinstance(one, MetricError)]


def as_text(value: Any) -> str:
    """JSON for people to read."""
    import dspy

    plain = value.toDict() if isinstance(value, dspy.Example) else value
    return json.dumps(plain, ensure_ascii=False, default=_as_json)


def _as_json(value: Any) -> Any:
    """What JSON does not know by itself; anything strange as its text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value.value if isinstance(value, Enum) else str(value)
