"""The probe: about thirty runs of the baseline on validation rows, and one call of the reflection model.

The choice of an optimizer rests on the profile that comes of it: what the baseline scores, how often its replies cannot
be parsed, whether the metric gives feedback, what a call costs on this machine, and whether the reflection model can
write a usable instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.evaluation import evaluate
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.optimizers.generators.finetune import training_facts
from dspy_toolkit.optimizers.generators.label_weights import labels_of
from dspy_toolkit.optimizers.generators.reflection import try_reflection
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.states import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from dspy_toolkit.datasets import DatasetSpec

PROBE_ROWS = 30


def probe(problem: Problem, progress: Callable[[int, int, str], None] | None = None) -> Profile:
    """Run the baseline on up to PROBE_ROWS validation rows, and ask the reflection model once.

    Raises:
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed.
    """
    program, spec, connection = problem.program, problem.spec, problem.connection
    rows = problem.val_sample(PROBE_ROWS)
    # Before the runs, which are timed: the first call of all loads the model.
    usable, note = try_reflection(program, rows, spec, connection)
    report = evaluate(
        program,
        rows,
        spec,
        problem.metric,
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=problem.store,
        threads=problem.threads,
        progress=None if progress is None else lambda done, total: progress(done, total, ""),
    )
    table = problem.store.read_frame(report.rows)
    asked = report.usage + report.judge_usage  # a judge's calls are charged to the budget too
    labelled = _labelled(problem)
    pass_rate = sum(value >= PASS for value in table["value"]) / report.n
    run_tokens = (asked.prompt_tokens + asked.completion_tokens) / report.n
    training_seconds, training_tokens, training_note = training_facts(problem, labelled, pass_rate, run_tokens)
    return Profile(
        train=len(problem.train),
        val=len(problem.val),
        probed=report.n,
        baseline=report.mean,
        pass_rate=pass_rate,
        parse_failures=report.parse_failures,
        metric_errors=report.metric_errors,
        graded=any(0 < value < 1 for value in table["value"]),
        feedback=any(table["feedback"]),
        predictors=len(program.predictors()),
        labelled=labelled,
        calls_per_run=asked.lm_calls / report.n,
        prompt_tokens=asked.prompt_tokens / report.n,
        completion_tokens=asked.completion_tokens / report.n,
        demo_tokens=_demo_tokens(rows, spec),
        seconds_per_call=report.seconds / asked.physical_calls if asked.physical_calls else 0.0,
        usd_per_call=asked.usd / asked.physical_calls if asked.physical_calls else 0.0,
        labels=labels_of(program) if labelled and connection.model.startswith(PREFIX) else 0,
        training_seconds=training_seconds,
        training_tokens=training_tokens,
        training_note=training_note,
        reflector_ok=usable,
        reflector_note=note,
    )


def _labelled(problem: Problem) -> bool:
    steps = problem.program.predictors()
    return len(steps) == 1 and set(signature_of(steps[0]).output_fields) <= set(problem.spec.outputs)


def _demo_tokens(rows: pd.DataFrame, spec: DatasetSpec) -> float:
    """At the usual four characters a token, with about eight tokens for the header of each field."""
    columns = [name for name in (*spec.inputs, *spec.outputs) if name in rows]
    characters = sum(rows[name].astype(str).str.len().mean() for name in columns)
    return float(characters / 4 + 8 * len(columns))
