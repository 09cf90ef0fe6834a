"""What is known of a project's judge: kept by `dspy-toolkit judge agreement`, shown on the pages of its runs.

One file a project, `HOME/judges/PROJECT.json`; a new check replaces it. What was checked is the metric with its rubric and
models: after a change of any of them the file says nothing about the project's judge, and is not shown.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation import JudgeCheck
from dspy_toolkit.lm.roles import role_model
from dspy_toolkit.metrics import models_of, source_of
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import digest


def metric_hash(project: Project, settings: Settings) -> str:
    """A hash of the project's metric and of the models that it may ask."""
    return digest(source_of(project.metric), models_of(project.metric), role_model(settings, "judge").model)


def keep_check(settings: Settings, project: Project, check: JudgeCheck) -> Path:
    """Write what is known of the project's judge, and return where."""
    path = _path(settings, project)
    write_file(path, check.model_dump_json(indent=2).encode())
    return path


def kept_check(settings: Settings, project: Project) -> JudgeCheck | None:
    """What is known of the project's judge as it is now; None where nothing is.

    Raises:
        DatasetError: the file was kept and is damaged.
    """
    path = _path(settings, project)
    if not path.is_file():
        return None
    try:
        check = JudgeCheck.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.errors()[0]['msg']}. Run `dspy-toolkit judge agreement` again, or remove it."
        ) from None
    return check if check.metric == metric_hash(project, settings) else None


def _path(settings: Settings, project: Project) -> Path:
    return settings.path("judges", f"{project.name}.json")
