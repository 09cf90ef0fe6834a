"""A program on a whole split: every row once, or several times where the model draws samples; a report, and a table.

With `repeats` each row is run that often with other samples (DSPy's `rollout_id`, which is the seed on the engine). Its
score is the mean, and the table keeps every run's score, so that what is chance of the sampling and what is the row can
be told apart. Rows stay the unit of every interval: runs of one row are no new evidence about other rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.errors import DatasetError, SettingsError
from dspy_toolkit.evaluation.report import BAD_ROW, Report, RowScore
from dspy_toolkit.evaluation.rows import Progress, RowRun, as_text, score_runs
from dspy_toolkit.gate.intervals import mean_interval
from dspy_toolkit.metrics import Metric
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.store import Store

if TYPE_CHECKING:
    import dspy
    import pandas as pd
    from dspy.adapters.base import Adapter

    from dspy_toolkit.lm.meter import MeteredLM


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
    repeats: int = 1,
    limit: int | None = None,
    progress: Progress | None = None,
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
        repeats: runs of each row, 1 or more; above 1 the model's temperature must be above 0.
        limit: logical LM calls allowed, the metric's included; None for no limit.
        progress: called in this thread with the runs done and all runs.

    Raises:
        DatasetError: the split has no rows.
        SettingsError: `repeats` is below 1, or above 1 at temperature 0, where every run of a row is the same.
        MetricError, RequestRefused, ProgramError, BudgetExhausted, ToolkitError, LMError: as `score_rows`.
    """
    if frame.empty:
        raise DatasetError(f"The {split} split has no rows, so there is nothing to evaluate. Add rows to the dataset.")
    _check_repeats(repeats, lm)
    cases = examples(frame, spec, fields_of(program))
    metered = lm.metered(limit)
    began = time.monotonic()
    keys, groups = ([str(name) for name in frame[column]] for column in ("_row", "_group"))
    runs = _runs(cases, keys, metered, repeats)
    scored = score_runs(
        program,
        runs,
        metric,
        split=split,
        unit="rows" if repeats == 1 else "runs",
        lm=metered,
        adapter=adapter,
        threads=threads,
        progress=progress,
    )
    by_row = [scored[place * repeats : (place + 1) * repeats] for place in range(len(cases))]
    values = [sum(run.value for run in row) / repeats for row in by_row]
    low, high = mean_interval(values, groups)
    meter, judge = metered.meter, metered.meter.judge
    return Report(
        split=split,
        mean=sum(values) / len(values),
        low=low,
        high=high,
        n=len(cases),
        repeats=repeats,
        parse_retries=meter.parse_retries - judge.parse_retries,
        parse_failures=sum(run.status == "parse_failure" for run in scored),
        metric_errors=sum(run.status == "metric_error" for run in scored),
        errors=sum(run.status in BAD_ROW for run in scored),
        truncated=meter.truncated - judge.truncated,
        measures=_means([run.measures for run in scored]),
        usage=meter.usage - judge.usage,
        judge_usage=judge.usage,
        seconds=time.monotonic() - began,
        rows=store.save_frame(_table(keys, groups, values, by_row, cases)),
    )


def _check_repeats(repeats: int, lm: MeteredLM) -> None:
    if repeats < 1:
        raise SettingsError(f"repeats is {repeats}. Give the runs of each row, 1 or more.")
    # None is a model's own default, which reasoning models insist on; it is above 0.
    if repeats > 1 and lm.kwargs.get("temperature") == 0:
        raise SettingsError(
            f"repeats is {repeats}, but the temperature of {lm.model} is 0, so every run of a row gives the same answer. "
            "Set lm.temperature above 0, or repeats to 1."
        )


def _runs(cases: Sequence[dspy.Example], keys: Sequence[str], lm: MeteredLM, repeats: int) -> list[RowRun]:
    """`repeats` runs of each row, those of one row beside each other.

    The k-th run of any row has the same rollout, in every evaluation: two programs are compared under the same samples,
    and an evaluation that is made again is answered by the cache.
    """
    if repeats == 1:
        return [RowRun(case, key, lm) for case, key in zip(cases, keys, strict=True)]
    lms = [lm.copy(rollout_id=number) for number in range(1, repeats + 1)]
    return [
        RowRun(case, f"{key} (run {number})", rollout)
        for case, key in zip(cases, keys, strict=True)
        for number, rollout in enumerate(lms, start=1)
    ]


def _means(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each measure over the runs that have it, in the order in which they first appear."""
    found: dict[str, list[float]] = {}
    for measures in measured:
        for name, value in measures.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _table(
    keys: Sequence[str],
    groups: Sequence[str],
    values: Sequence[float],
    by_row: Sequence[Sequence[RowScore]],
    cases: Sequence[dspy.Example],
) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([row[0].model_dump() for row in by_row])
    table["value"] = list(values)
    table["measures"] = [json.dumps(_means([run.measures for run in row]), ensure_ascii=False) for row in by_row]
    table["values"] = [json.dumps([run.value for run in row]) for row in by_row]
    table.insert(0, "_row", list(keys))
    table.insert(1, "_group", list(groups))
    table["expected"] = [as_text(case.labels()) for case in cases]
    table["inputs"] = [as_text(case.inputs()) for case in cases]
    return table
