"""Deleting a version.

The version leaves the registry and the chain that rollbacks follow. The MLflow run that made it stays, with its files: what was
deleted by mistake is still there as a folder, which `dspy-toolkit programs export` takes. Its number is not given again.

Not covered: the champion, what its losses are counted from (its anchor), and removing runs, which MLflow's own tools do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.promotion import unlink
from dspy_toolkit.registry.turns import promotion_turn
from dspy_toolkit.registry.versions import CHAMPION, Version, find_version, list_versions, load_version
from dspy_toolkit.tracking.mlflow_client import session

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


def delete_version(settings: Settings, reference: str) -> Version:
    """Delete `project@3`, and return what it was.

    Args:
        settings: the home and the registry.
        reference: with the version's number: an alias may stand for another version by the time that it is read.

    Raises:
        RegistryError: no such version, it is the champion or its anchor, or the registry cannot be written.
    """
    if not reference.rpartition("@")[2].isdigit():
        raise RegistryError(f"{reference!r} does not say which version to delete. Write its number: project@3.")
    project = find_version(settings, reference).project
    with promotion_turn(settings, project):
        found = find_version(settings, reference)
        name = f"{found.project}@{found.version}"
        if CHAMPION in found.aliases:
            raise RegistryError(
                f"{name} is the champion, and is not deleted. Run `dspy-toolkit programs rollback {found.project}` first."
            )
        if any(CHAMPION in each.aliases for each in list_versions(settings, found.project)):
            _, live = load_version(settings, f"{found.project}@{CHAMPION}")
            if live.anchor == found.version:
                raise RegistryError(
                    f"{name} is what the champion's losses are counted from, and is not deleted: the champion was promoted for "
                    "its fewer tokens. Delete it when a program has been promoted for quality."
                )
        with session(settings, f"{name} was not deleted") as mlflow:
            unlink(mlflow, settings, found)
            mlflow.delete_model_version(found.project, str(found.version))
    return found
