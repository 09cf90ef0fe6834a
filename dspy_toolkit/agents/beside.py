"""What an optimization asks the model beside its budget: the probe, and the comparisons on validation and sealed rows.

It is the most that the rows allow: each program of the comparison on every validation row and every sealed one, replies from the
cache counted too. Calls for one row are as many as the newest recorded run of the project saw; before there is one, as many as
the program has predictors.

Not covered: a second call for a reply that could not be read, and a program that asks more often than that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspy_toolkit.project import Project
    from dspy_toolkit.settings import Settings

REFLECTIONS = 1
"""Calls of the reflection model in the probe."""


def calls_beside(settings: Settings, project: Project) -> int:
    """LM calls of an optimization of `project` that are not in its budget, at most.

    Raises:
        DatasetError: the rows cannot be used.
        ProjectError: the program cannot be made.
        RegistryError: MLflow or the champion cannot be read.
    """
    from dspy_toolkit.optimizers.plan.probe import PROBE_ROWS
    from dspy_toolkit.pipeline.compare import MOST_ROWS
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.pipeline.prepare import look_at_rows

    settings = settings.for_project(project.name)
    rows = look_at_rows(Context(project, settings)).report.splits
    compared = rows["val"] + min(rows["sealed"] + rows["val"], MOST_ROWS)
    runs = min(rows["val"], PROBE_ROWS) + _programs(settings, project) * settings.optimize.repeats * compared
    return math.ceil(runs * _calls_per_run(settings, project)) + REFLECTIONS


def _programs(settings: Settings, project: Project) -> int:
    """That a comparison runs: the candidate, the champion, and what the champion's losses are counted from."""
    from dspy_toolkit.registry import champion, load_version

    live = champion(settings, project.name).version
    cheaper = live is not None and load_version(settings, f"{project.name}@{live}")[1].anchor is not None
    return 3 if cheaper else 2


def _calls_per_run(settings: Settings, project: Project) -> float:
    from dspy_toolkit.tracking.history import read_history
    from dspy_toolkit.tracking.mlflow_client import session

    known = float(len(project.build().predictors()))
    for run in read_history(settings, project=project.name, limit=1).runs:
        with session(settings, f"The run {run.run_id} could not be read") as mlflow:
            seen = mlflow.get_run(run.run_id).data.params.get("profile.calls_per_run", "")
        known = max(known, float(seen or 0))
    return known
