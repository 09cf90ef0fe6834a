"""Race the optimizers against each other on a project, and stop before the sealed test.

python -m flows.compare_optimizers --project router
"""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from dspy_toolkit.optimizers import Compiled
from flows.options import BudgetOption
from tasks.optimization import compile_program, probe_program, select_optimizer
from tasks.preparation import prepare_dataset, resolve_project
from tasks.release import record_race


@flow(flow_run_name="compare optimizers for {project}", persist_result=True, result_serializer="json")
def compare_optimizers(project: str = "router", budget: BudgetOption = None, workers: bool = False) -> Compiled:
    """Find out which optimizer helps `project` most, within one budget for all of them. Nothing is promoted.

    Args:
        project: a name, path/to/file.py:attr, or path/to/file.toml.
        budget: light (300 LM calls), medium (1,200), heavy (5,000), a number of calls (800) or a time (15m), for all arms together.
        workers: run the arms on the workers of the pool, side by side.
    """
    ref = resolve_project(project)
    dataset = prepare_dataset(ref.data)
    profile = probe_program(ref.program, dataset.train, dataset.val)
    choice = select_optimizer(ref.program, profile, "race", budget)
    found = compile_program(ref.program, choice, profile, dataset.train, dataset.val, workers=workers)
    record_race(ref, dataset, profile, choice, found, flow_run.get_name() or f"compare optimizers for {ref.name}")
    return found


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(compare_optimizers)
