"""Promoting a program that passed the gate, and recording the run."""

from __future__ import annotations

import base64
import socket

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.transactions import Transaction, get_transaction
from pydantic import BaseModel

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.display.progress import step
from dspy_toolkit.display.summary import print_arms, print_summary
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.pipeline.record import Run
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import ProjectRef
from dspy_toolkit.registry import Decision, champion, rollback
from dspy_toolkit.settings import load_settings
from tasks.policy import artifact_key, uncached_task


class Release(BaseModel):
    """A decision, and the MLflow run that holds the version it made, if it made one."""

    decision: Decision
    run_id: str | None


@uncached_task(task_run_name="release {run.ref.name}")
def release_program(run: Run) -> Release:
    """Keep and promote the candidate if it passed; a failure on the way leaves the old champion in place."""
    bench = Workbench.open(run.ref.location, load_settings())
    with step("release"):
        decision, run_id = bench.release(run)
    if decision.outcome == "promoted" and (release := get_transaction()) is not None:
        release.set("project", run.ref.location)
        release.set("promoted", decision.version)
    return Release(decision=decision, run_id=run_id)


@release_program.on_rollback
def restore_champion(release: Transaction) -> None:
    """Undo a promotion when what came after it in the same transaction failed."""
    if (promoted := release.get("promoted", None)) is None:
        return
    bench = Workbench.open(release.get("project"), load_settings())
    if champion(bench.settings, bench.project.name).version == promoted:
        rollback(bench.settings, bench.project.name)


@uncached_task(task_run_name="record the race for {ref.name}")
def record_race(ref: ProjectRef, dataset: Dataset, profile: Profile, choice: Choice, found: Compiled, name: str) -> str:
    """Write a race that stops before the sealed test into MLflow, and show it."""
    bench = Workbench.open(ref.location, load_settings())
    with step("record"):
        run_id = bench.record_race(ref, dataset, profile, choice, found, name)
    create_table_artifact(
        [arm.model_dump() for arm in found.arms], key=artifact_key(ref.name, "race"), description=found.summary
    )
    print_arms(found)
    return run_id


@uncached_task(task_run_name="record {run.ref.name}")
def record_run(run: Run, release: Release) -> str:
    """Write the run into MLflow and show it; complete also when every step before came from the cache."""
    bench = Workbench.open(run.ref.location, load_settings())
    with step("record"):
        run_id = bench.record(run, release.decision, release.run_id)
    figure = bench.plot(run)
    picture = f"\n\n![comparison](data:image/png;base64,{base64.b64encode(figure).decode()})\n" if figure else "\n"
    page = bench.report_path(run_id)
    # Prefect shows no HTML of others: the page lies on this machine, and among the files of the MLflow run.
    where = f"\nReport: `{page}` on {socket.gethostname()}, and `report.html` of the MLflow run `{run_id}`.\n"
    create_markdown_artifact(
        f"## {release.decision.outcome}\n\n{release.decision.reason}{picture}{where}",
        key=artifact_key(run.ref.name, "decision"),
        description=f"{run.ref.name}: {release.decision.outcome}",
    )
    create_link_artifact(
        page.as_uri(), "The run's report", artifact_key(run.ref.name, "report"), description=f"{run.name}: {page}"
    )
    print_summary(bench, run, release.decision, report=page)
    return run_id
