"""Race the optimizers against each other on a project, and stop before the sealed test.

python -m flows.compare_optimizers --project router
"""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from dspy_toolkit.optimizers import Compiled
from dspy_toolkit.run import Compilation, CompileInput, Request, SearchInput, SelectInput
from flows.options import BudgetOption
from flows.temporary_server import watch_run
from tasks.compile import compile_program
from tasks.steps import (
    prepare_dataset,
    probe_program,
    record_comparison,
    resolve_project,
    select_optimizer,
)
from tasks.tracing import traced


@flow(
    flow_run_name="compare optimizers for {project}",
    persist_result=True,
    result_serializer="json",
    on_running=[watch_run],
)
def compare_optimizers(project: str = "router", budget: BudgetOption = None, workers: bool = False) -> Compiled:
    """Find out which optimizer helps `project` most, within one budget for all of them. Nothing is promoted.

    Args:
        project: a name, path/to/file.py:attr, or path/to/file.toml.
        budget: light (300 LM calls), medium (1,200), heavy (5,000), a number of calls (800), a time (15m) or dollars (2.50usd), for
            all together.
        workers: score candidates on the workers of the work pool, side by side.
    """
    with traced():
        ref = resolve_project(Request(location=project))
        dataset = prepare_dataset(ref.data)
        search = SearchInput.of(ref, dataset)
        profile = probe_program(search.without_start)
        choice = select_optimizer(SelectInput(**dict(search), profile=profile, optimizer="race", budget=budget))
        found = compile_program(CompileInput(**dict(search), choice=choice, profile=profile), workers=workers)
        name = flow_run.get_name() or f"compare optimizers for {ref.name}"
        record_comparison(
            Compilation(name=name, ref=ref, dataset=dataset, profile=profile, choice=choice, compiled=found)
        )
        return found


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(compare_optimizers)
