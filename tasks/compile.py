"""Compiling: a search as one task, whose candidates are scored here or on the workers of the work pool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import wait_for_flow_run
from prefect.utilities.asyncutils import run_coro_as_sync

from dspy_toolkit.errors import EngineFailed, OptimizerError
from dspy_toolkit.optimizers import Compiled
from dspy_toolkit.optimizers.pool.scoring import Scored, ScoreJob
from dspy_toolkit.pipeline.compile import compile as search
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.project import check_known
from dspy_toolkit.run import CompileInput, ScoreInput
from dspy_toolkit.settings import load_settings
from tasks.steps import as_task, compile_one, still_there
from tasks.tracing import job_variables

DEPLOYMENT = "score-candidate/worker"


def compile_program(given: CompileInput, *, workers: bool = False) -> Compiled:
    """Search for a better program.

    Args:
        given: two of the three splits, and the choice.
        workers: score candidates on the workers of the work pool.
    """
    # A reason names the runs before this one: what was searched already is not searched again for other words.
    return (compile_on_workers if workers else compile_one)(given.unexplained)


def _compile_on_workers(context: Context, given: CompileInput, progress: Progress | None = None) -> Compiled:
    """`compile`, with candidates scored on workers."""
    check_known(given.location, load_settings())  # the workers would refuse it, one after the other
    return search(context, given, progress, partial(_on_workers, given))


compile_on_workers = still_there(
    as_task(
        _compile_on_workers,
        "compile {given.project} with {given.choice.optimizer} on workers",
        cached=True,
        shown="compile",
        asks_model=True,
        queued=False,  # the workers of this host wait for their turn themselves
    )
)


def _on_workers(given: CompileInput, jobs: Sequence[ScoreJob]) -> list[Scored]:
    """Start all, then wait for all."""
    started = []
    for job in jobs:
        asked = ScoreInput(
            **{name: getattr(given, name) for name in ("program", "train", "val", "start", "night")}, job=job
        )
        try:
            parameters = {"given": asked.model_dump(mode="json")}
            started.append(run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, job_variables=job_variables()))
        except ObjectNotFound as error:
            raise OptimizerError(
                f"There is no deployment {DEPLOYMENT} to score candidates. Make it with `prefect deploy --all`, start "
                "a worker of its pool, or leave --workers out."
            ) from error
    return [_result(job, run.id) for job, run in zip(jobs, started, strict=True)]


def _result(job: ScoreJob, run_id: object) -> Scored:
    run = run_coro_as_sync(wait_for_flow_run(run_id, timeout=None, poll_interval=2))
    state = run.state
    if not state.is_completed():
        raise EngineFailed(f"Scoring {job.label} on a worker ended as {state.name}: {state.message}")
    return Scored.model_validate(state.result())
