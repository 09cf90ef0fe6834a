"""What one run of the steps found, and writing it down: parameters, numbers, a plot, tables, its page.

Not covered: how MLflow is written (`dspy_toolkit.tracking.runs`), the version that a run made (`dspy_toolkit.pipeline.release`), what the
page says (`dspy_toolkit.report`), and reading a record back (`dspy_toolkit.tracking.history`).
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.datasets.checking import choices_of
from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.pipeline.compare import Challenge
from dspy_toolkit.pipeline.release import manifest_of
from dspy_toolkit.project import ChampionPart, Project, ProjectRef
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry.manifest import MANIFEST_FILE, PROGRAM_FILE, manifest_bytes, program_bytes
from dspy_toolkit.registry.programs import live_program
from dspy_toolkit.report import render_report
from dspy_toolkit.report.plots import comparison_plot
from dspy_toolkit.store import Frozen, digest
from dspy_toolkit.tracking.runs import close_failed, open_run, record_run

if TYPE_CHECKING:
    from dspy_toolkit.registry import Decision
    from dspy_toolkit.settings import Settings
    from dspy_toolkit.store import Store

log = logging.getLogger(__name__)


class Compilation(Frozen):
    """What the steps of one optimization found, up to the compiled program; a race may stop there."""

    name: str
    """For people, as MLflow shows it."""
    ref: ProjectRef
    dataset: Dataset
    profile: Profile
    choice: Choice
    compiled: Compiled


class Run(Compilation):
    """What the steps of one optimization found, up to the decision."""

    challenge: Challenge


def record(run: Run, decision: Decision, run_id: str | None, project: Project, settings: Settings, store: Store) -> str:
    """Write a whole run into MLflow, and return its run's id. Complete also when every step came from a cache.

    Args:
        run_id: the MLflow run that holds the version which was made of it; None: a new one.

    Raises:
        RegistryError: MLflow cannot be written.
        StoreError: the home cannot be written.
    """
    compiled, challenged, comparison = run.compiled, run.challenge, run.challenge.comparison
    artifacts: dict[str, bytes | str] = {
        "profile.json": run.profile.model_dump_json(indent=2),
        "choice.json": run.choice.model_dump_json(indent=2),
        "decision.json": decision.model_dump_json(indent=2),
        "dataset.json": store.read(run.dataset.report),
        f"program/{PROGRAM_FILE}": program_bytes(store.read_json(compiled.program)),
    }
    if run_id is None:  # a promoted version has its manifest already, written last
        artifacts[f"program/{MANIFEST_FILE}"] = manifest_bytes(
            manifest_of(run, project, store).model_copy(update={"program_sha256": compiled.program.sha256})
        )
    if (figure := plot_of(run, project)) is not None:
        artifacts["comparison.png"] = figure
    tables = {}
    for split, report in (("val", challenged.candidate_val), ("sealed", comparison and comparison.candidate)):
        if report is not None:
            tables[f"rows_{split}.json"] = store.read_frame(report.rows)
    artifacts["report.html"] = page = report_of(run, decision, project, settings, store)
    if run_id is None:
        run_id = open_run(settings, project.name, run.name)
    try:
        write_file(report_path(run_id, project, settings), page.encode())
    except BaseException:
        close_failed(settings, run_id)
        raise
    return record_run(
        settings,
        project.name,
        run.name,
        parameters_of(run, project, settings),
        measures_of(run),
        artifacts,
        {"outcome": decision.outcome, "reason": decision.reason, "version": decision.version},
        tables=tables,
        run_id=run_id,
    )


def record_race(race: Compilation, project: Project, settings: Settings, store: Store) -> str:
    """Write a race that stopped before the sealed test into MLflow, and return its run's id.

    Raises:
        RegistryError: MLflow cannot be written.
    """
    return record_run(
        settings,
        project.name,
        race.name,
        parameters_of_compiling(race, project, settings),
        measures_of_compiling(race),
        {
            "profile.json": race.profile.model_dump_json(indent=2),
            "choice.json": race.choice.model_dump_json(indent=2),
            "race.json": race.compiled.model_dump_json(indent=2),
            f"program/{PROGRAM_FILE}": program_bytes(store.read_json(race.compiled.program)),
        },
        {"outcome": "compared", "reason": race.compiled.summary},
    )


def report_of(run: Run, decision: Decision, project: Project, settings: Settings, store: Store) -> str:
    """The run's page: one HTML text that needs nothing beside it. See `dspy_toolkit.report`."""
    before = _state_before(run.ref.champion, project, settings)
    return render_report(run, project, store, decision, before, when=datetime.now(UTC))


def report_path(run_id: str, project: Project, settings: Settings) -> Path:
    """Where `record` keeps the page of the MLflow run `run_id`."""
    return settings.path("reports", project.name, f"{run_id}.html")


def _state_before(live: ChampionPart, project: Project, settings: Settings) -> dict[str, Any] | None:
    """Of the program that a candidate was compared with; None where its version can no longer be read."""
    try:
        return state_of(live_program(live, project, settings).program)
    except (RegistryError, ProjectError) as error:
        # The comparison was made when it could be: a page that lacks one half is better than no record of the run.
        log.warning("The report goes without the program before: %s", error)
        return None


def parameters_of(run: Run, project: Project, settings: Settings) -> dict[str, Any]:
    """What was asked for, and what the result depends on."""
    return {
        **parameters_of_compiling(run, project, settings),
        "champion_before": run.ref.champion.version,
    }


def parameters_of_compiling(made: Compilation, project: Project, settings: Settings) -> dict[str, Any]:
    """The same, of what comes before a champion is looked at."""
    ref, choice, compiled = made.ref, made.choice, made.compiled
    return {
        "optimizer": compiled.optimizer,
        "winner": compiled.arms[0].name if compiled.arms else compiled.optimizer,
        "chosen": choice.optimizer,
        "search": search_of(ref, made.dataset, choice),
        "settings": choice.settings,
        "budget": choice.budget,
        "start": ref.start.name if ref.start else "",
        "task": task_kind(project),
        "profile": made.profile,
        "model": ref.program.model,
        "reflection_model": ref.program.reflection_model,
        "seed": settings.optimize.seed,
        "data": ref.data.fingerprint,
        "program": ref.program.fingerprint,
        "metric": name_of(project.metric),
    }


def search_of(ref: ProjectRef, dataset: Dataset, choice: Choice) -> str:
    """sha256 of all that a compilation depends on: runs that share it made the same search, from the cache or not."""
    return digest(
        ref.program.fingerprint,
        [dataset.train.sha256, dataset.val.sha256],
        [choice.optimizer, choice.settings, choice.lm_calls],
        ref.start.state.sha256 if ref.start else "",
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
    comparison = run.challenge.comparison
    measures = measures_of_compiling(run)
    if comparison is not None:
        measures |= {
            "sealed_candidate": comparison.candidate.mean,
            "sealed_champion": comparison.champion.mean,
            "sealed_delta": comparison.delta,
            "sealed_delta_low": comparison.low,
            "sealed_delta_high": comparison.high,
            "sealed_looks": comparison.looks,
            "alpha_left": comparison.alpha_left,
            "tokens_ratio": comparison.tokens_ratio,
        }
        measures |= {f"reference_{name.replace(' ', '_')}": mean for name, mean in run.challenge.references.items()}
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


def plot_of(run: Run, project: Project) -> bytes | None:
    """The comparison as a PNG; None when the sealed rows were not opened."""
    if (comparison := run.challenge.comparison) is None:
        return None
    return comparison_plot(
        comparison.candidate,
        comparison.champion,
        comparison.delta,
        comparison.low,
        comparison.high,
        level=comparison.level,
        title=f"{project.name}: {run.challenge.outcome}",
        metric=name_of(project.metric),
        against=f"version {run.ref.champion.version}",
    )
