"""One turn of one arm of a race, as a run of its own: a race with `--workers` starts one for each arm, on any machine.

The machines share the store, Prefect's results and the project's files. Not meant to be started by hand.
"""

from __future__ import annotations

from prefect import flow

from dspy_toolkit.optimizers.race.arm_run import ArmRunResult
from dspy_toolkit.run import ArmInput
from tasks.steps import run_one_arm


@flow(flow_run_name="{given.arm_run.arm} for {given.project}", persist_result=True, result_serializer="json")
def run_arm(given: ArmInput) -> ArmRunResult:
    """Search with the arm's allowance, and score what was found on rows that no arm chose by."""
    return run_one_arm(given)
