"""Reading everything that can change a result. Never cached.

It writes nothing, but for what a killed process left half done: first of all that is finished or undone.
"""

from __future__ import annotations

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.lm.connection import model_names
from dspy_toolkit.pipeline import source
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.record import finish_cut_off
from dspy_toolkit.project import ProgramPart, ProjectRef, fingerprint_program
from dspy_toolkit.project import resolve as resolve_parts
from dspy_toolkit.registry import champion
from dspy_toolkit.run import Request


def resolve(context: Context, request: Request) -> ProjectRef:
    """The project's parts, each with a hash of all that it depends on, and what is live.

    Raises:
        DatasetError, ProjectError, ModelNotFound, RegistryError, StoreError: what cannot be read.
    """
    finish_cut_off(context)
    task, reflection = model_names(context.settings)
    start = (
        source.find_start(request.start, context.project, context.settings, context.store) if request.start else None
    )
    return resolve_parts(
        context.project,
        context.settings,
        model=task,
        reflection_model=reflection,
        champion=champion(context.settings, context.project.name),
        start=start,
    )


def program_part(context: Context) -> ProgramPart:
    """What the program's answers depend on, read now."""
    task, reflection = model_names(context.settings)
    made_of = fingerprint_program(context.project, context.settings, model=task, reflection_model=reflection)
    project = context.project
    return ProgramPart(
        project=project.name, location=project.location, model=task, reflection_model=reflection, fingerprint=made_of
    )


def check_unchanged(context: Context, program: ProgramPart) -> None:
    """Refuse to go on with a program that is not the one of the run's beginning: what is cached under it must come from it.

    Raises:
        ProjectError: the program, its metric or its models have changed since.
    """
    now = program_part(context).fingerprint
    # One that differs each time, of a program made by chance, says nothing.
    if now != program.fingerprint and now == program_part(context).fingerprint:
        raise ProjectError(
            f"The project {program.project} has changed since this run began ({program.fingerprint[:12]} became "
            f"{now[:12]}). Run it again."
        )
