"""Probing a program, choosing an optimizer, compiling."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from dspy_toolkit.display.progress import Reporter, step
from dspy_toolkit.display.summary import print_choice
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import ProgramPart, StartPart
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import Ref
from dspy_toolkit.tracking.history import PastRun
from tasks.policy import accelerator, artifact_key, cached_task
from tasks.race import run_race

UPDATE_SECONDS = 3.0


@cached_task(task_run_name="probe {program.project}")
def probe_program(program: ProgramPart, train: Ref, val: Ref) -> Profile:
    """Some thirty runs, to know the program before anything is spent on it."""
    bench = Workbench.open(program.location, load_settings())
    with accelerator(), step("probe") as reporter:
        return bench.probe(train, val, reporter.rows)


def select_optimizer(
    program: ProgramPart,
    profile: Profile,
    optimizer: str | None,
    budget: str | None,
    start: StartPart | None = None,
) -> Choice:
    """Choose, with a written reason. What was not said is taken from the project, then from the settings."""
    bench = Workbench.open(program.location, load_settings())
    # Resolved before the cached task, so that neither a changed default nor a new like run is answered from the cache.
    history = bench.experience(profile, optimizer)
    choice = _select(program, profile, *bench.wishes(optimizer, budget), history, start)
    print_choice(choice)
    return choice


@cached_task(task_run_name="select an optimizer for {program.project}")
def _select(
    program: ProgramPart,
    profile: Profile,
    optimizer: str,
    budget: str,
    history: tuple[PastRun, ...],
    start: StartPart | None,
) -> Choice:
    with step("select"):
        bench = Workbench.open(program.location, load_settings())
        choice = bench.select(profile, optimizer, budget, history, start)
    others = "\n".join(f"- {name}: {reason}" for name, reason in choice.alternatives.items())
    create_markdown_artifact(
        f"## {choice.optimizer}\n\n{choice.reason}\n\nAbout {choice.predicted_lm_calls} of {choice.lm_calls} LM calls "
        f"({choice.budget}). Settings: `{choice.settings}`\n\nNot taken:\n{others}\n",
        key=artifact_key(program.project, "choice"),
        description="The optimizer, and why",
    )
    return choice


def compile_program(
    program: ProgramPart,
    choice: Choice,
    profile: Profile,
    train: Ref,
    val: Ref,
    start: StartPart | None = None,
    *,
    workers: bool = False,
) -> Compiled:
    """Search for a better prompt. It is given two of the three splits.

    Args:
        profile: what `choice` was made from; a race goes on from it.
        start: a program from elsewhere, to search on from where it is the better one.
        workers: run the arms of a race on the workers of the pool.
    """
    if choice.optimizer == "race":
        return run_race(program, choice, profile, train, val, start, workers=workers)
    # A reason names the runs before this one: what was searched already is not searched again for other words.
    return _compile(program, choice.unexplained, train, val, start)


@cached_task(task_run_name="compile {program.project} with {choice.optimizer}")
def _compile(program: ProgramPart, choice: Choice, train: Ref, val: Ref, start: StartPart | None) -> Compiled:
    bench = Workbench.open(program.location, load_settings())
    with accelerator(), step("compile") as reporter, _live(program.project, reporter):
        return bench.compile(program.fingerprint, choice, train, val, reporter.calls, start)


@contextmanager
def _live(project: str, reporter: Reporter) -> Iterator[None]:
    """A progress artifact that follows the reporter while the block runs."""
    artifact = create_progress_artifact(0.0, key=artifact_key(project, "progress"), description="Compiling")
    over = threading.Event()

    def follow() -> None:
        while not over.wait(UPDATE_SECONDS):
            update_progress_artifact(artifact, reporter.percent, description=reporter.doing)

    # In the task's context, where Prefect finds its client and the run that the artifact belongs to.
    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    follower.start()
    try:
        yield
        reporter.finish()
    finally:
        over.set()
        follower.join()
    update_progress_artifact(artifact, 100.0, description="Compiled")
