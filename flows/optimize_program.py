"""Optimize a project's program, and promote the result only if it has proved to be better.

python -m flows.optimize_program --project router
"""

from __future__ import annotations

import logging
from typing import Annotated

from cyclopts import Parameter
from prefect import flow
from prefect.runtime import flow_run

from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.optimizers import Choice
from dspy_toolkit.pipeline.release import undo_release
from dspy_toolkit.registry import Decision
from dspy_toolkit.run import CompareInput, CompileInput, ReleasedRun, Request, Run, SearchInput, SelectInput
from dspy_toolkit.settings import OptimizerName
from flows.options import BudgetOption
from flows.temporary_server import watch_run
from tasks.compile import compile_program
from tasks.policy import open_project
from tasks.steps import (
    compare_programs,
    prepare_dataset,
    probe_program,
    record_run,
    release_baseline_version,
    release_program,
    resolve_project,
    select_optimizer,
)
from tasks.tracing import traced

log = logging.getLogger(__name__)


@flow(flow_run_name="optimize {project}", persist_result=True, result_serializer="json", on_running=[watch_run])
def optimize_program(
    project: str = "router",
    optimizer: OptimizerName | None = None,
    budget: BudgetOption = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    dry_run: bool = False,
    workers: bool = False,
) -> Decision | Choice:
    """Compile `project` and promote the result only if it beats the champion on the sealed test.

    Args:
        project: a name, path/to/file.py:attr, or path/to/file.toml.
        optimizer: auto, race, labelled, bootstrap, random, mipro, gepa or simba; the project's or the settings' by default.
        budget: light (300 LM calls), medium (1,200), heavy (5,000), a number of calls (800), a time (15m) or dollars (2.50usd);
            the sealed test apart.
        start: search from this program where its fields fit: project@champion, project@3, a folder, or a project.
        dry_run: stop before anything is compiled, with the choice and what each optimizer would cost.
        workers: score candidates on the workers of the work pool, side by side.
    """
    with traced():
        ref = resolve_project(Request(location=project, start=start))
        dataset = prepare_dataset(ref.data)
        search = SearchInput.of(ref, dataset)
        profile = probe_program(search.without_start)
        choice = select_optimizer(SelectInput(**dict(search), profile=profile, optimizer=optimizer, budget=budget))
        if dry_run:
            return choice
        ref = release_baseline_version(ref)
        candidate = compile_program(CompileInput(**dict(search), choice=choice, profile=profile), workers=workers)
        comparison = compare_programs(CompareInput.of(ref, dataset, choice, candidate))
        run = Run(
            name=flow_run.get_name() or f"optimize {ref.name}",
            ref=ref,
            dataset=dataset,
            profile=profile,
            choice=choice,
            compiled=candidate,
            comparison=comparison,
        )
        released = release_program(run)
        # Not a transaction of Prefect's: that rolls back at the first attempt that fails, and the next one may record.
        try:
            record_run(released)
        except BaseException:
            undo_promotion(released)
            raise
        return released.decision


def undo_promotion(released: ReleasedRun) -> None:
    """Take back a promotion that cannot be recorded: the next run, whose steps are all cached, makes both.

    Where that fails too, the next run records it (`dspy_toolkit.registry.unfinished`).
    """
    try:
        undo_release(open_project(released), released.decision)
    except ToolkitError as error:  # the first error is the one to raise
        log.warning("%s", error)


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(optimize_program)
