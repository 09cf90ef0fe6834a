"""Runs that a process left open when it was killed: a promotion among them is finished, everything else undone.

A promotion goes: the run is opened, with what is needed to record it → the version is saved → the alias moves → the run is
recorded and closed. The open run is the intent. Where its process is gone, the alias says how far it came: if it has moved,
the version is live, and the run is recorded; if not, the version stays without being promoted, and the run is closed as
failed.

Not covered: what a complete record holds; whoever calls `finish_or_undo` knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from dspy_toolkit.registry.versions import CHAMPION, Version, list_versions
from dspy_toolkit.store import Frozen, Ref
from dspy_toolkit.tracking.mlflow_client import exists, session
from dspy_toolkit.tracking.processes import PROCESS_TAG, processes_gone
from dspy_toolkit.tracking.runs import PROJECT_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run as RunEntity

    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

INTENT_TAG = "intent"


class Unfinished(Frozen):
    """A promotion that was made, and whose run was not recorded."""

    run_id: str
    name: str
    """The run's, for people."""
    version: Version
    intent: Ref | None
    """What the run's opener left to record it with, a JSON object of the store; None when it left nothing."""


def finish_or_undo(settings: Settings, project: str, finish: Callable[[Unfinished], None]) -> None:
    """Look after the runs of processes that are gone. Before the first run this reads and makes nothing.

    Args:
        settings: the home and the registry.
        project: whose promotions are finished; those of other projects wait for their own next run.
        finish: records and closes the run of a promotion.

    Raises:
        RegistryError: MLflow cannot be read or written.
    """
    with closing(processes_gone(settings)) as gone:
        for process in gone:
            settled = [_settle(settings, run, project, finish) for run in _left_open(settings, process.name)]
            if all(settled):
                process.unlink()


def _settle(settings: Settings, run: RunEntity, project: str, finish: Callable[[Unfinished], None]) -> bool:
    """Finish or undo one run; False when it has to wait for a run of its own project."""
    run_id, name, owner = run.info.run_id, str(run.info.run_name), run.data.tags.get(PROJECT_TAG, "")
    version = _promoted(settings, owner, run_id)
    if version is None:
        if run.info.status != "FAILED":
            log.warning("The run %r of %s was cut off. It is closed as failed.", name, owner)
            with session(settings, f"The run {run_id} could not be marked as failed") as mlflow:
                mlflow.set_terminated(run_id, "FAILED")
        return True
    if owner != project:
        return False
    log.warning("The run %r of %s was cut off after its promotion. It is recorded now.", name, owner)
    intent = run.data.tags.get(INTENT_TAG)
    ref = Ref(sha256=intent, kind="json") if intent else None
    finish(Unfinished(run_id=run_id, name=name, version=version, intent=ref))
    return True


def _left_open(settings: Settings, process: str) -> list[RunEntity]:
    """The runs of `process` that were not recorded. Failed ones too: a promotion may have been about to be undone."""
    if not exists(settings):
        return []
    with session(settings, "The runs that were left open could not be read") as mlflow:
        experiment = mlflow.get_experiment_by_name(settings.registry.experiment)
        if experiment is None:
            return []
        wanted = f"tags.{PROCESS_TAG} = '{process}' and attributes.status != 'FINISHED'"
        return list(mlflow.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1000))


def _promoted(settings: Settings, project: str, run_id: str) -> Version | None:
    """The version that hangs on a run, if it is or was the champion."""
    with session(settings, f"The versions of {project} could not be read") as mlflow:
        if not mlflow.search_model_versions(f"run_id='{run_id}'", max_results=1):
            return None
    versions = list_versions(settings, project)
    replaced = {version.previous for version in versions}
    # The one that replaced it was live or about to be: either way the alias had moved to this one before.
    return next(
        (each for each in versions if each.run_id == run_id and (CHAMPION in each.aliases or each.version in replaced)),
        None,
    )
