"""Compiling: one search as one task, or the arms of a race as tasks, here or on the workers of the pool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import wait_for_flow_run
from prefect.utilities.asyncutils import run_coro_as_sync

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Compiled
from dspy_toolkit.optimizers.compile import of_race
from dspy_toolkit.optimizers.race.arm_run import ArmRun, ArmRunResult
from dspy_toolkit.optimizers.race.race import race
from dspy_toolkit.project import check_known
from dspy_toolkit.run import ArmInput, CompileInput
from dspy_toolkit.settings import load_settings
from tasks.steps import compile_one, run_one_arm

DEPLOYMENT = "run-arm/worker"


def compile_program(given: CompileInput, *, workers: bool = False) -> Compiled:
    """Search for a better program.

    Args:
        given: two of the three splits, and the choice.
        workers: run the arms of a race on the workers of the pool.
    """
    if given.choice.optimizer == "race":
        return run_race(given, workers=workers)
    # A reason names the runs before this one: what was searched already is not searched again for other words.
    return compile_one(given.unexplained)


def run_race(given: CompileInput, *, workers: bool) -> Compiled:
    """Run a race whose arm runs are tasks: finished ones come from the cache, also after the process was killed."""
    if given.profile is None:
        raise OptimizerError("A race needs the profile that it was chosen by.")
    began = time.monotonic()
    runner = _on_workers if workers else _here
    return of_race(race(given.choice, given.profile, partial(runner, given)), time.monotonic() - began)


def _arm_input(given: CompileInput, arm_run: ArmRun) -> ArmInput:
    return ArmInput(program=given.program, train=given.train, val=given.val, start=given.start, arm_run=arm_run)


def _here(given: CompileInput, arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
    return [run_one_arm(_arm_input(given, arm_run)) for arm_run in arm_runs]


def _on_workers(given: CompileInput, arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
    """Start all, then wait for all. A run that failed is an arm that failed; without the baseline's the race ends."""
    check_known(given.location, load_settings())  # the workers would refuse it, one after the other
    started = []
    for arm_run in arm_runs:
        parameters = {"given": _arm_input(given, arm_run).model_dump(mode="json")}
        try:
            started.append(run_deployment(DEPLOYMENT, parameters=parameters, timeout=0))
        except ObjectNotFound as error:
            raise OptimizerError(
                f"There is no deployment {DEPLOYMENT} to run the arms of a race. Make it with `prefect deploy --all`, start "
                "a worker of its pool, or leave --workers out."
            ) from error
    return [_result(arm_run, run.id) for arm_run, run in zip(arm_runs, started, strict=True)]


def _result(arm_run: ArmRun, run_id: object) -> ArmRunResult:
    run = run_coro_as_sync(wait_for_flow_run(run_id, timeout=None, poll_interval=2))
    state = run.state
    if not state.is_completed():
        return ArmRunResult(arm=arm_run.arm, error=f"Its run on a worker ended as {state.name}: {state.message}")
    return ArmRunResult.model_validate(state.result())
