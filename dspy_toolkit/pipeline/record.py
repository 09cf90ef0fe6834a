"""Writing a run down: parameters, numbers, a plot, tables, its page.

Not covered: how MLflow is written (`dspy_toolkit.tracking.runs`), the version that a run made (`release`), what the page says
(`dspy_toolkit.report`), and reading a record back (`dspy_toolkit.tracking.history`).
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.datasets.checking import choices_of
from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ObjectMissing, ProjectError, RegistryError
from dspy_toolkit.evaluation import Report, class_reports
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import Choice
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.judge_check import kept_check
from dspy_toolkit.pipeline.nights import remember_night
from dspy_toolkit.pipeline.release import manifest_of
from dspy_toolkit.project import Project, ProjectRef
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.project.states import levers_in_words, predictor_states
from dspy_toolkit.registry import Decision
from dspy_toolkit.registry.manifest import MANIFEST_FILE, PROGRAM_FILE, manifest_bytes, program_bytes
from dspy_toolkit.registry.programs import live_program
from dspy_toolkit.registry.unfinished import Unfinished, finish_or_undo
from dspy_toolkit.report import gather, render
from dspy_toolkit.report.plots import comparison_plot
from dspy_toolkit.run import Compilation, ReleasedRun, Run
from dspy_toolkit.store import Ref, digest
from dspy_toolkit.tracking.runs import close_failed, open_run, record_run

log = logging.getLogger(__name__)

SCORED = ("_row", "_group", "value", "status")
"""What is recorded of a sealed row whose inputs and answers are not to be shown."""


def record(context: Context, run: ReleasedRun) -> str:
    """Write a whole run into MLflow, and return its MLflow run's id. Complete also when every step came from a cache.

    Its page is among the run's files, and at `report_path`.

    Raises:
        RegistryError: MLflow cannot be written.
        StoreError: the home cannot be written.
    """
    settings, store, decision = context.settings, context.store, run.decision
    artifacts: dict[str, bytes | str] = {
        "profile.json": run.profile.model_dump_json(indent=2),
        "choice.json": run.choice.model_dump_json(indent=2),
        "decision.json": decision.model_dump_json(indent=2),
        "dataset.json": store.read(run.dataset.report),
        f"program/{PROGRAM_FILE}": program_bytes(store.read_json(run.compiled.program)),
    }
    if decision.run_id is None:  # a promoted version has its manifest already, written last
        manifest = manifest_of(context, run).model_copy(update={"program_sha256": run.compiled.program.sha256})
        artifacts[f"program/{MANIFEST_FILE}"] = manifest_bytes(manifest)
    if (figure := plot_of(context, run)) is not None:
        artifacts["comparison.png"] = figure
    tables, sealed = {}, run.comparison.sealed
    for split, report in (("val", run.comparison.candidate_val), ("sealed", sealed and sealed.candidate)):
        if report is not None:
            table = store.read_frame(report.rows)
            hidden = split == "sealed" and not settings.observe.show_sealed_rows
            tables[f"rows_{split}.json"] = table[list(SCORED)] if hidden else table
    artifacts["report.html"] = page = report_of(context, run)
    run_id = decision.run_id or open_run(settings, run.ref.name, run.name)
    try:
        write_file(report_path(context, run_id), page.encode())
    except BaseException:
        close_failed(settings, run_id)
        raise
    recorded = record_run(
        settings,
        run.ref.name,
        run.name,
        parameters_of(context, run) | {"champion_before": run.ref.champion.version},
        measures_of(run) | measures_of_answers(context, run),
        artifacts,
        {"outcome": decision.outcome, "reason": decision.reason, "version": decision.version},
        tables=tables,
        run_id=run_id,
    )
    remember_night(context, run, search_of(run.ref, run.dataset, run.choice))
    return recorded


def finish_cut_off(context: Context) -> None:
    """Record the promotions that a process made and was killed before it had recorded; what it had not promoted fails.

    Raises:
        RegistryError, StoreError: MLflow or the home cannot be read or written.
    """
    finish_or_undo(context.settings, context.project.name, partial(_finish, context))


def _finish(context: Context, left: Unfinished) -> None:
    version, intent = left.version, left.intent
    try:
        if intent is not None:
            run = Run.model_validate(context.store.read_json(intent))
            decision = Decision(
                outcome="promoted",
                reason=run.comparison.reason,
                version=version.version,
                previous=run.ref.champion.version,
                promoted_for=run.comparison.promoted_for,
                run_id=left.run_id,
            )
            record(context, ReleasedRun(**dict(run), decision=decision))
            return
    except (ObjectMissing, ProjectError, ValidationError) as error:
        log.warning("%s is recorded without what it measured: %s", left.name, error)
    tags = {"version": version.version} | ({"outcome": "promoted"} if intent else {})
    record_run(
        context.settings,
        version.project,
        left.name,
        {"optimizer": version.optimizer},
        {},
        tags=tags,
        run_id=left.run_id,
    )


def record_compilation(context: Context, made: Compilation) -> str:
    """Write what stopped before the sealed test into MLflow, and return its MLflow run's id.

    Raises:
        RegistryError: MLflow cannot be written.
    """
    recorded = record_run(
        context.settings,
        made.ref.name,
        made.name,
        parameters_of(context, made),
        measures_of_compiling(made),
        {
            "profile.json": made.profile.model_dump_json(indent=2),
            "choice.json": made.choice.model_dump_json(indent=2),
            "pool.json": made.compiled.model_dump_json(indent=2),
            f"program/{PROGRAM_FILE}": program_bytes(context.store.read_json(made.compiled.program)),
        },
        {"outcome": "compared", "reason": made.compiled.summary},
    )
    remember_night(context, made, search_of(made.ref, made.dataset, made.choice))
    return recorded


def report_of(context: Context, run: ReleasedRun) -> str:
    """The run's page: one HTML text that needs nothing beside it. See `dspy_toolkit.report`."""
    before = _state_before(context, run)
    shown, judge = context.settings.observe.show_sealed_rows, kept_check(context.settings, context.project)
    when = datetime.now(UTC)
    return render(gather(run, context.project, context.store, before, judge=judge, when=when, show_sealed_rows=shown))


def report_path(context: Context, run_id: str) -> Path:
    """Where `record` keeps the page of the MLflow run `run_id`."""
    return context.settings.path("reports", context.project.name, f"{run_id}.html")


def _state_before(context: Context, run: Run) -> dict[str, Any] | None:
    """Of the program that the candidate was compared with; None where its version can no longer be read."""
    try:
        return state_of(live_program(run.ref.champion, context.project, context.settings).program)
    except (RegistryError, ProjectError) as error:
        # The comparison was made when it could be: a page that lacks one half is better than no record of the run.
        log.warning("The report goes without the program before: %s", error)
        return None


def parameters_of(context: Context, made: Compilation) -> dict[str, Any]:
    """What was asked for, and what the result depends on."""
    ref, choice, compiled = made.ref, made.choice, made.compiled
    return {
        "optimizer": compiled.optimizer,
        "winner": compiled.winner,
        "chosen": choice.optimizer,
        "levers": levers_of(context, compiled.program),
        "search": search_of(ref, made.dataset, choice),
        "settings": choice.settings.model_dump(exclude={"optimizer"}),
        "budget": choice.budget,
        "start": ref.start.name if ref.start else "",
        "task": task_kind(context.project),
        "profile": made.profile,
        "model": ref.program.model,
        "reflection_model": ref.program.reflection_model,
        "seed": context.settings.optimize.seed,
        "night": ref.night.number,
        "data": ref.data.fingerprint,
        "program": ref.program.fingerprint,
        "metric": name_of(context.project.metric),
    }


def levers_of(context: Context, program: Ref) -> str:
    """What a program has beside its prompts, in words; each said once."""
    parts = predictor_states(context.store.read_json(program)).values()
    return ", ".join(dict.fromkeys(lever for part in parts for lever in levers_in_words(part)))


def search_of(ref: ProjectRef, dataset: Dataset, choice: Choice) -> str:
    """sha256 of all that a compilation depends on: runs that share it made the same search, from the cache or not."""
    return digest(
        ref.program.fingerprint,
        [dataset.train.sha256, dataset.val.sha256],
        [choice.settings.model_dump(mode="json"), choice.lm_calls],
        ref.start.state.sha256 if ref.start else "",
        [ref.night.number, [start.state.sha256 for start in ref.night.starts]],
    )


def task_kind(project: Project) -> str:
    """What the program is to answer: `choice`, `number` or `text`; `record` for several outputs, a list or a model; `open`
    where the rows hold no answer.
    """
    fields, outputs = fields_of(project.build()), project.dataset.outputs
    if len(outputs) != 1:
        return "record" if outputs else "open"
    kind = fields.get(outputs[0], str)
    if choices_of(kind) is not None:
        return "choice"
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is str:
        return "text"
    return "number" if kind in (int, float) else "record"


def measures_of(run: Run) -> dict[str, Any]:
    """What was measured; of the sealed test only when it was opened."""
    sealed = run.comparison.sealed
    measures = measures_of_compiling(run)
    if sealed is not None:
        measures |= {
            "sealed_candidate": sealed.candidate.mean,
            "sealed_champion": sealed.champion.mean,
            "sealed_delta": sealed.delta,
            "sealed_delta_low": sealed.low,
            "sealed_delta_high": sealed.high,
            "sealed_looks": sealed.looks,
            "alpha_left": sealed.alpha_left,
            "tokens_ratio": sealed.tokens_ratio,
        }
        measures |= {
            f"reference_{name.replace(' ', '_')}": mean for name, mean in run.comparison.reference_rules.items()
        }
    return measures


def measures_of_answers(context: Context, run: Run) -> dict[str, Any]:
    """What the candidate's answers were like, on each split that it ran on: faults, what the metric measured beside the
    score, and accuracy and macro-F1 of every output that is a choice (`val_macro_f1` where there is one output).
    """
    outputs, types = context.project.dataset.outputs, fields_of(context.project.build())
    sealed = run.comparison.sealed
    reports = {"val": run.comparison.candidate_val, "sealed": sealed and sealed.candidate}
    measures: dict[str, Any] = {}
    for split, report in reports.items():
        if isinstance(report, Report):
            measures |= {
                f"{split}_{name}": getattr(report, name)
                for name in ("parse_failures", "metric_errors", "errors", "truncated")
            }
            # MLflow takes letters, digits and few signs in a name.
            measures |= {
                f"{split}_measure_{re.sub(r'[^0-9A-Za-z_]', '_', name)}": value
                for name, value in report.measures.items()
            }
            for found in class_reports(context.store.read_frame(report.rows), outputs, types):
                of = "" if len(outputs) == 1 else f"_{found.output}"
                measures[f"{split}_accuracy{of}"] = found.accuracy.value
                measures[f"{split}_macro_f1{of}"] = found.macro_f1.value
    return measures


def measures_of_compiling(made: Compilation) -> dict[str, Any]:
    """What was measured up to the compiled program."""
    compiled = made.compiled
    return {
        "probe_baseline": made.profile.baseline,
        # Where nothing was scored they would read as a program that answers nothing rightly.
        "val_baseline": compiled.val_baseline if compiled.trials else None,
        "val_candidate": compiled.val_mean if compiled.trials else None,
        "val_gain": compiled.val_mean - compiled.val_baseline if compiled.trials else None,
        "trial_val_mean": [trial.val_mean for trial in compiled.trials],
        "predicted_lm_calls": made.choice.predicted_lm_calls,
        "compile_lm_calls": compiled.usage.lm_calls,
        "compile_physical_calls": compiled.usage.physical_calls,
        "compile_prompt_tokens": compiled.usage.prompt_tokens,
        "compile_completion_tokens": compiled.usage.completion_tokens,
        "compile_seconds": compiled.seconds,
    }


def plot_of(context: Context, run: Run) -> bytes | None:
    """The comparison as a PNG; None when the sealed rows were not opened."""
    if (sealed := run.comparison.sealed) is None:
        return None
    return comparison_plot(
        sealed.candidate,
        sealed.champion,
        sealed.delta,
        sealed.low,
        sealed.high,
        level=sealed.level,
        title=f"{run.ref.name}: {run.comparison.outcome}",
        metric=name_of(context.project.metric),
        against=f"version {run.ref.champion.version}",
    )
