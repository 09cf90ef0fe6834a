"""Projects for people and scripts: those that are known by name, and what one of them is.

Listing imports their code, as finding them does; one that cannot be imported is listed with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.metrics import name_of
from dspy_toolkit.project.definition import Project
from dspy_toolkit.project.finding import load_named, project_names
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


class Known(NamedTuple):
    """One line of the list."""

    name: str
    summary: str
    location: str
    """Where it is; its name again for one that is installed or registered."""
    fault: str = ""
    """Why it cannot be loaded; empty where it can."""


def list_known(settings: Settings) -> list[Known]:
    """The projects that are known by name, sorted."""
    found = []
    for name in project_names(settings):
        where = settings.location_of(name) or name
        try:
            found.append(Known(name, load_named(name, settings).summary, where))
        except ToolkitError as error:
            found.append(Known(name, "", where, str(error)))
    return found


def describe(project: Project) -> dict[str, Any]:
    """A project as plain JSON: its fields by predictor, its metric, its dataset, what it asks of a run.

    Raises:
        ProjectError: its program cannot be made.
    """
    program, spec = project.build(), project.dataset
    predictors: dict[str, str] = {}
    for name, predictor in program.named_predictors():
        signature: Any = predictor.signature
        predictors[name] = f"{', '.join(signature.input_fields)} -> {', '.join(signature.output_fields)}"
    return {
        "name": project.name,
        "summary": project.summary,
        "location": project.location,
        "program": type(program).__name__,
        "predictors": predictors,
        "fields": {name: _written(kind) for name, kind in fields_of(program).items()},
        "metric": name_of(project.metric),
        "rows": str(project.data_path),
        "inputs": list(spec.inputs),
        "outputs": list(spec.outputs),
        "optimizer": project.optimizer,
        "budget": project.budget,
        "renames": dict(project.renames),
        "reference_rules": list(project.reference_rules),
        "files": list(project.files),
    }


def _written(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
