"""What is live: the alias `champion` of a project's registered model, and nothing else.

Covered: reading it, moving it to a version (`promote`), moving it back (`rollback`). Before the alias moves, the
new version gets the tag `previous` with the version that it replaces; so a promotion that breaks off leaves the old
champion in place, and one that succeeded can always be undone. Each version has its own tag, so rollbacks chain, and
`champions` walks back along them; a version that is promoted once more first leaves its old place in the chain, which so is never
a circle. One writer at a time, over all homes of an MLflow server (`turns`, which says what stays possible there). Whoever moves the
alias without a turn is noticed right before and right after it is moved here: then this promotion's tags are taken back.

Not covered: whether a program deserves promotion (the gate).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.turns import promotion_turn
from dspy_toolkit.registry.versions import (
    CHAMPION,
    FORCED,
    PREVIOUS,
    PROMOTED,
    Version,
    find_version,
    list_versions,
    registered_model,
)
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.mlflow_client import exists, session

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dspy_toolkit.project import ChampionPart
    from dspy_toolkit.settings import Settings


class Decision(Frozen):
    """How a run ended."""

    outcome: Literal["promoted", "refused", "unchanged"]
    reason: str
    """One sentence for people."""
    version: int | None
    """The version that the candidate was saved as; None when it was not saved."""
    previous: int | None
    """The champion before the decision; None when there was none."""
    promoted_for: Literal["quality", "tokens"] | None = None
    """Why it was promoted: better answers, or nearly as good ones from fewer tokens."""
    run_id: str | None = None
    """The MLflow run that holds the version; None when no version was saved."""


def champion(settings: Settings, project: str) -> ChampionPart:
    """The live version's number and its program's sha256; both None when nothing has been promoted. Writes nothing.

    Raises:
        RegistryError: the registry cannot be read.
    """
    from dspy_toolkit.project import ChampionPart

    live = _live(settings, project)
    return ChampionPart(version=live and live.version, sha256=live and live.program_sha256)


def champions(settings: Settings, project: str) -> list[Version]:
    """The champion and those before it that a rollback returns to one after the other; the newest first.

    Raises:
        RegistryError: the registry has no such project, or cannot be read.
    """
    return chain(list_versions(settings, project))


def chain(versions: list[Version]) -> list[Version]:
    """Of all versions of a project, the champion and those that it and its predecessors replaced."""
    known = {version.version: version for version in versions}
    at = next((version for version in versions if CHAMPION in version.aliases), None)
    found: dict[int, Version] = {}
    while at is not None and at.version not in found:  # homes of version 0.1.0 may hold a circle
        found[at.version] = at
        at = known.get(at.previous) if at.previous is not None else None
    return list(found.values())


def promote(
    settings: Settings,
    project: str,
    version: int,
    *,
    compared_with: ChampionPart | None = None,
    forced: str = "",
) -> int | None:
    """Make `version` the champion of `project`, and read it back. Promoting the champion changes nothing.

    Args:
        settings: the home and the registry.
        project: the project's name.
        version: a saved version.
        compared_with: the champion that the version was shown to beat, as `champion` gave it. When another one is
            live by now the promotion is refused, since the comparison says nothing about it. None: no check.
        forced: why it is promoted past the gate, in somebody's words, to be kept with the version; empty where it is not.

    Returns:
        The version that was replaced, or None.

    Raises:
        RegistryError: no such version, another champion by now, or the registry cannot be written: the old champion
            stays.
    """
    find_version(settings, f"{project}@{version}")
    with promotion_turn(settings, project) as mine:
        before = list_versions(settings, project)
        found = find_version(settings, f"{project}@{version}")
        replaced = next((each.version for each in before if CHAMPION in each.aliases), None)
        if replaced == version:
            return found.previous
        if compared_with is not None and compared_with.version != replaced:
            raise RegistryError(
                f"{project}@{version} was compared with {_named(project, compared_with.version)}, "
                f"but by now the champion is {_named(project, replaced)}. Run the optimization again."
            )
        with session(settings, f"{project}@{version} was not promoted") as mlflow:
            unlink(mlflow, settings, found)
            # The tag first: were the alias to move before it, a failure in between would lose the way back.
            mlflow.set_model_version_tag(project, str(version), PREVIOUS, str(replaced or ""))
            mlflow.set_model_version_tag(project, str(version), PROMOTED, datetime.now(UTC).isoformat())
            if forced or found.forced:
                mlflow.set_model_version_tag(project, str(version), FORCED, forced)
        try:
            _move(settings, project, version, replaced, mine)
        except _Overtaken:
            _put_back(settings, before, version)
            raise
    return replaced


def unlink(mlflow: MlflowClient, settings: Settings, version: Version) -> None:
    """Take a version out of the chain: what replaced it has replaced what it had replaced. Call it inside `session`."""
    for later in list_versions(settings, version.project):
        if later.previous == version.version:
            mlflow.set_model_version_tag(version.project, str(later.version), PREVIOUS, str(version.previous or ""))


def rollback(settings: Settings, project: str) -> int:
    """Make the version that the champion replaced the champion again, and return its number.

    A second rollback goes one further back. The version rolled back from stays, and can be promoted again.

    Raises:
        RegistryError: nothing is promoted, the champion is the first one, or the version before it was deleted.
    """
    find_version(settings, f"{project}@{CHAMPION}")
    with promotion_turn(settings, project) as mine:
        live = find_version(settings, f"{project}@{CHAMPION}")
        if live.previous is None:
            raise RegistryError(
                f"{project}@{live.version} is the first champion: there is nothing to roll back to. "
                f"Run `dspy-toolkit programs list {project}`."
            )
        back = find_version(settings, f"{project}@{live.previous}")
        _move(settings, project, back.version, live.version, mine)
    return back.version


def undo(settings: Settings, project: str, version: int) -> bool:
    """Take back the promotion of `version`: what it replaced is the champion again, or nothing where it replaced nothing.

    Returns:
        Whether it was taken back; False when another version is live by now, which stays.

    Raises:
        RegistryError: the registry cannot be written.
    """
    if _live(settings, project) is None:
        return False
    with promotion_turn(settings, project) as mine:
        live = _live(settings, project)
        if live is None or live.version != version:
            return False
        if live.previous is not None:
            _move(settings, project, live.previous, version, mine)
            return True
        with session(settings, f"The promotion of {project}@{version} could not be taken back") as mlflow:
            mlflow.delete_registered_model_alias(project, CHAMPION)
    return True


def _live(settings: Settings, project: str) -> Version | None:
    if not exists(settings):
        return None
    with session(settings, f"Cannot read the champion of {project}") as mlflow:
        if registered_model(mlflow, project) is None:
            return None
    return next((found for found in list_versions(settings, project) if CHAMPION in found.aliases), None)


class _Overtaken(RegistryError):
    """Somebody else moved the alias, or may."""


def _move(
    settings: Settings, project: str, version: int, replaced: int | None, mine: Callable[[MlflowClient], bool]
) -> None:
    """Move the alias from `replaced` to `version`. Raises _Overtaken where it is not there before, or not here after."""
    wanted = f"{project}@{version} was to replace {_named(project, replaced)}, but"
    with session(settings, f"The champion of {project} did not move to version {version}") as mlflow:
        if not mine(mlflow):
            raise _Overtaken(
                f"{wanted} this process stood still for so long that another home has the turn. Run it again."
            )
        at = _alias(mlflow, project)
        if at == replaced:
            mlflow.set_registered_model_alias(project, CHAMPION, str(version))
            at = _alias(mlflow, project)
    if at != version:
        raise _Overtaken(
            f"{wanted} by now the registry says that the champion is {_named(project, at)}: somebody else is promoting. "
            f"Run `dspy-toolkit programs list {project}`."
        )


def _alias(mlflow: MlflowClient, project: str) -> int | None:
    model = registered_model(mlflow, project)
    at = model and model.aliases.get(CHAMPION)
    return int(at) if at else None


def _put_back(settings: Settings, before: list[Version], version: int) -> None:
    """Give `version`, and those that it was taken out from between, the tags that they had."""
    with session(settings, f"The tags of version {version}, which was not promoted, were not taken back") as mlflow:
        for was in before:
            if was.version == version or was.previous == version:
                mlflow.set_model_version_tag(was.project, str(was.version), PREVIOUS, str(was.previous or ""))
            if was.version == version:
                promoted = was.promoted.isoformat() if was.promoted else ""
                mlflow.set_model_version_tag(was.project, str(was.version), PROMOTED, promoted)
                mlflow.set_model_version_tag(was.project, str(was.version), FORCED, was.forced)


def _named(project: str, version: int | None) -> str:
    return f"{project}@{version}" if version is not None else "no version"
