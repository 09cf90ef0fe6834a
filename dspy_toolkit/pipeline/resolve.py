"""Reading everything that can change a result. Never cached.

It writes nothing, but for what a killed process left half done: first of all that is finished or undone.
"""

from __future__ import annotations

from dspy_toolkit.datasets import read_file
from dspy_toolkit.pipeline import source
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.nights import find_night
from dspy_toolkit.pipeline.record import finish_cut_off
from dspy_toolkit.pipeline.unchanged import program_part
from dspy_toolkit.project import ProjectRef, data_part
from dspy_toolkit.registry import champion
from dspy_toolkit.run import Request


def resolve(context: Context, request: Request) -> ProjectRef:
    """The project's parts, each with a hash of all that it depends on, and what is live.

    Raises:
        DatasetError, ProjectError, ModelNotFound, RegistryError, StoreError: what cannot be read.
    """
    finish_cut_off(context)
    project, settings = context.project, context.settings
    program, live = program_part(context), champion(settings, project.name)
    return ProjectRef(
        name=project.name,
        location=project.location,
        data=data_part(project, settings, read_file(project.data_path)),
        program=program,
        champion=live,
        start=source.find_start(request.start, project, settings, context.store) if request.start else None,
        night=find_night(context, program, live),
        false_promotion_rate=settings.optimize.false_promotion_rate,
    )
