"""Asking the project's promoted program to read a description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.errors import ProjectError

if TYPE_CHECKING:
    from dspy_toolkit.advising.advisor import Advisor
    from dspy_toolkit.advising.situation import Situation
    from dspy_toolkit.settings import Settings


def ask_champion(advisor: Advisor, description: str, settings: Settings | None = None) -> tuple[Situation, str] | None:
    """(situation, which version read it); None where none of the project's programs was promoted beyond its baseline.

    A baseline is not asked: read by a small model that nothing has optimized, a description is worse than by keyword rules.

    Raises:
        RegistryError: the promoted program cannot be used.
        ProjectError: the model's reply does not hold a situation.
        ToolkitError: the model cannot be had, or failed.
    """
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.mlflow_client import exists

    settings = settings or load_settings()
    if not exists(settings):
        return None
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    from dspy_toolkit.lm import connect
    from dspy_toolkit.registry.programs import load_program

    loaded = load_program(settings, advisor.name)
    if loaded.manifest is None or loaded.manifest.optimizer == "none":
        return None
    connection = connect(settings.for_project(loaded.project.name))
    with connection.context(), dspy.context(trace=[]):
        try:
            answer = loaded.program(request=description)
        except AdapterParseError as error:
            raise ProjectError(
                f"The reply of {loaded.manifest.project}'s program holds no situation: {str(error.lm_response)[:200]!r}. "
                "Say it in options, such as --" + " --".join(list(advisor.situation.model_fields)[:2]) + "."
            ) from error
    return advisor.situation.lenient(dict(answer.items())), f"the promoted program of {advisor.name}"
