"""Promoting a program that passed the gate, and recording the run."""

from __future__ import annotations

import base64

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.transactions import Transaction, transaction
from pydantic import BaseModel

from dspy_toolkit.challenge import Challenge
from dspy_toolkit.cli.progress import step
from dspy_toolkit.cli.summary import print_summary
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.project import ProjectRef
from dspy_toolkit.registry import Decision, champion, rollback
from dspy_toolkit.settings import load_settings
from dspy_toolkit.workbench import Run, Workbench
from tasks.policy import RETRY_DELAYS, is_transient


class Release(BaseModel):
    """A decision, and the MLflow run that holds the version it made, if it made one."""

    decision: Decision
    run_id: str | None


def bundle(
    ref: ProjectRef,
    dataset: Dataset,
    profile: Profile,
    choice: Choice,
    candidate: Compiled,
    comparison: Challenge,
) -> Run:
    """What the steps before found, under the flow run's name."""
    name = flow_run.get_name() or f"optimize {ref.name}"
    return Run(name, ref, dataset, profile, choice, candidate, comparison)


@task(
    task_run_name="release {ref.name}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_transient,
)
def release_program(
    ref: ProjectRef, dataset: Dataset, profile: Profile, choice: Choice, candidate: Compiled, comparison: Challenge
) -> Release:
    """Keep and promote the candidate if it passed; a failure on the way leaves the old champion in place."""
    bench = Workbench.open(ref.location, load_settings())
    with transaction() as release, step("release"):
        release.set("ref", ref)
        decision, run_id = bench.release(bundle(ref, dataset, profile, choice, candidate, comparison))
        if decision.outcome == "promoted":
            release.set("promoted", decision.version)
    return Release(decision=decision, run_id=run_id)


@release_program.on_rollback
def restore_champion(release: Transaction) -> None:
    """Undo a promotion when what came after it in the same transaction failed."""
    promoted, ref = release.get("promoted", None), release.get("ref", None)
    if promoted is None or ref is None:
        return
    settings = Workbench.open(ref.location, load_settings()).settings
    if champion(settings, ref.name).version == promoted and ref.champion.version is not None:
        rollback(settings, ref.name)


@task(
    task_run_name="record {ref.name}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_transient,
)
def record_run(
    ref: ProjectRef,
    dataset: Dataset,
    profile: Profile,
    choice: Choice,
    candidate: Compiled,
    comparison: Challenge,
    release: Release,
) -> str:
    """Write the run into MLflow and show it; complete also when every step before came from the cache."""
    bench = Workbench.open(ref.location, load_settings())
    run = bundle(ref, dataset, profile, choice, candidate, comparison)
    with step("record"):
        run_id = bench.record(run, release.decision, release.run_id)
    figure = bench.plot(run)
    picture = f"\n\n![comparison](data:image/png;base64,{base64.b64encode(figure).decode()})\n" if figure else "\n"
    create_markdown_artifact(
        f"## {release.decision.outcome}\n\n{release.decision.reason}{picture}",
        key=f"{ref.name}-decision".lower(),
        description=f"{ref.name}: {release.decision.outcome}",
    )
    print_summary(bench, run, release.decision)
    return run_id
