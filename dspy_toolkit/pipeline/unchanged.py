"""Whether a step's program is still the one that the run began with.

Not covered: the rows, which `prepare` alone reads from the project's file, and checks itself.
"""

from __future__ import annotations

from dspy_toolkit import project as parts
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import ProgramPart


def program_part(context: Context) -> ProgramPart:
    """What the program's answers depend on, read now."""
    return parts.program_part(context.project, context.settings)


def check_unchanged(context: Context, program: ProgramPart) -> None:
    """Refuse to go on with a program that is not the one of the run's beginning.

    Raises:
        ProjectError: the program, its metric, its models or what else it depends on has changed since.
    """
    parts.refuse_changed(program, lambda: program_part(context))
