"""One lap of one arm of a race, as a run of its own: a race with `--workers` makes one for each arm, on whatever machine takes it.

The machines share the store, Prefect's results and the project's files. Not meant to be started by hand.
"""

from __future__ import annotations

from prefect import flow

from dspy_toolkit.optimizers.race.arm_run import ArmRun, ArmRunResult
from dspy_toolkit.project import ProgramPart, StartPart
from dspy_toolkit.store import Ref
from tasks.race import run_lap


@flow(flow_run_name="{lap.arm} for {program.project}", persist_result=True, result_serializer="json")
def run_arm(program: ProgramPart, lap: ArmRun, train: Ref, val: Ref, start: StartPart | None = None) -> ArmRunResult:
    """Search with the lap's allowance, and score what was found on its items."""
    return run_lap(program, lap, train, val, start)
