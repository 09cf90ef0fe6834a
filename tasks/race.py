"""The laps of a race as tasks, here or on the workers of the pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import wait_for_flow_run
from prefect.utilities.asyncutils import run_coro_as_sync

from dspy_toolkit.display.progress import step
from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.compile import of_race
from dspy_toolkit.optimizers.race.arm_run import ArmRun, ArmRunResult
from dspy_toolkit.optimizers.race.race import race
from dspy_toolkit.optimizers.search.search import Stopwatch
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import ProgramPart, StartPart
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import Ref
from tasks.policy import accelerator, cached_task

log = logging.getLogger(__name__)

DEPLOYMENT = "run-arm/worker"


@cached_task(task_run_name="{lap.arm} for {program.project}")
def run_lap(program: ProgramPart, lap: ArmRun, train: Ref, val: Ref, start: StartPart | None) -> ArmRunResult:
    """One lap. It is given two of the three splits."""
    bench = Workbench.open(program.location, load_settings())
    with accelerator(), step(lap.arm) as reporter:
        return bench.run_lap(program.fingerprint, lap, train, val, reporter.calls, start)


def run_race(
    program: ProgramPart,
    choice: Choice,
    profile: Profile,
    train: Ref,
    val: Ref,
    start: StartPart | None,
    *,
    workers: bool,
) -> Compiled:
    """Run a race whose laps are tasks: what was run before comes from the cache, also after the process was killed."""
    watch = Stopwatch()
    runner = _on_workers if workers else _here
    return of_race(race(choice, profile, partial(runner, program, train, val, start)), float(watch))


def _here(
    program: ProgramPart, train: Ref, val: Ref, start: StartPart | None, laps: Sequence[ArmRun]
) -> list[ArmRunResult]:
    return [run_lap(program, lap, train, val, start) for lap in laps]


def _on_workers(
    program: ProgramPart, train: Ref, val: Ref, start: StartPart | None, laps: Sequence[ArmRun]
) -> list[ArmRunResult]:
    """Start all, then wait for all. A run that failed is an arm that failed, but for the program as it came."""
    started = []
    for lap in laps:
        given = {"program": program, "lap": lap, "train": train, "val": val, "start": start}
        parameters = {name: value.model_dump(mode="json") for name, value in given.items() if value is not None}
        try:
            started.append(run_deployment(DEPLOYMENT, parameters=parameters, timeout=0))
        except ObjectNotFound as error:
            raise OptimizerError(
                f"There is no deployment {DEPLOYMENT} to run the arms of a race. Make it with `prefect deploy --all`, start "
                "a worker of its pool, or leave --workers out."
            ) from error
    return [_result(lap, run.id) for lap, run in zip(laps, started, strict=True)]


def _result(lap: ArmRun, run_id: object) -> ArmRunResult:
    run = run_coro_as_sync(wait_for_flow_run(run_id, timeout=None, poll_interval=2))
    state = run.state
    if not state.is_completed():
        return ArmRunResult(arm=lap.arm, error=f"Its run on a worker ended as {state.name}: {state.message}")
    return ArmRunResult.model_validate(state.result())
