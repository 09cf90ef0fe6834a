"""Program versions in the MLflow registry: one registered model a project, one version a saved program.

A version is `program/program.json` and `program/manifest.json` on an MLflow run, with what the program's state names (`parts`).
It is named `project@alias`, `project@number`, or by a folder that holds the two files. Only JSON and safetensors are read, and a program whose sha256 is not the
one in its manifest is refused.

Covered: saving, finding, listing, loading. Not covered: which version is live (`promotion`), deleting (`deleting`). Reading writes nothing: before the first save there is no database, and so no version.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import RegistryError, nearest
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.registry.manifest import (
    MANIFEST_FILE,
    PROGRAM_FILE,
    Manifest,
    manifest_bytes,
    program_bytes,
    read_manifest,
    read_program,
)
from dspy_toolkit.registry.parts import bring_parts, part_files
from dspy_toolkit.registry.reading import SavedVersion, saved_model, saved_names
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.mlflow_client import all_pages, exists, is_code, session
from dspy_toolkit.tracking.runs import write_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from dspy_toolkit.settings import Settings

CHAMPION = "champion"
PREVIOUS = "previous"
PROMOTED = "promoted"
"""Tag of a version: when it became the champion, the last time."""
FORCED = "forced"
"""Tag of a version: why it was promoted past the gate, in somebody's words."""
FOLDER = "program"

_PROJECT = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_REFERENCE = re.compile(r"(?P<project>[^@/\\]+)@(?P<which>[^@/\\]+)")


class Version(Frozen):
    """One line of a project's list."""

    project: str
    version: int
    aliases: tuple[str, ...]
    """`champion` on the one that is live."""
    previous: int | None
    """The version that this one replaced when it was promoted, which a rollback returns to."""
    optimizer: str
    model: str
    program_sha256: str
    run_id: str
    created: datetime
    promoted: datetime | None = None
    """When it became the champion, the last time; None where it never did, or before the toolkit wrote it down."""
    forced: str = ""
    """Why it was promoted past the gate; empty where it was not."""


def save_version(
    settings: Settings, project: str, program_state: dict[str, Any], manifest: Manifest, run_id: str
) -> int:
    """Keep a program as a new version of `project`. It is not live before `promote`.

    Saving the same program on the same run again returns the version that is there, so a step may be repeated.

    Args:
        settings: the home and the registry.
        project: letters, digits, `.`, `-`, `_`.
        program_state: what `program.dump_state(json_mode=True)` gives.
        manifest: its `program_sha256` is filled here.
        run_id: the run that made the program (`tracking.open_run` or `tracking.record_run`); one run holds one version.

    Returns:
        The version's number: 1, 2, …

    Raises:
        RegistryError: a state or manifest that is not JSON, a run that holds another program, or MLflow cannot be
            written.
    """
    if not _PROJECT.fullmatch(project) or manifest.project != project:
        raise RegistryError(
            f"Cannot save a version of {project!r} with a manifest of {manifest.project!r}: "
            "the two must be one name of letters, digits, '.', '-' and '_'."
        )
    program = program_bytes(program_state)
    sha256 = hashlib.sha256(program).hexdigest()
    files = manifest_bytes(manifest.model_copy(update={"program_sha256": sha256}))
    tags = {"program_sha256": sha256, "optimizer": manifest.optimizer, "model": manifest.model}
    with registry_lock(settings), session(settings, f"Cannot save a version of {project}") as mlflow:
        _make_model(mlflow, project)
        for saved in _search(mlflow, f"run_id='{run_id}'"):
            if saved.name == project and saved.tags.get("program_sha256") == sha256:
                return int(saved.version)
            raise RegistryError(
                f"The run {run_id} already holds {saved.name}@{saved.version}, another program. Open a new run."
            )
        write_artifacts(mlflow, run_id, {PROGRAM_FILE: program, **part_files(program_state, settings)}, FOLDER)
        # The manifest is written last, so its existence means that the version is whole.
        write_artifacts(mlflow, run_id, {MANIFEST_FILE: files}, FOLDER)
        made = mlflow.create_model_version(project, f"runs:/{run_id}/{FOLDER}", run_id, tags=tags)
    return int(made.version)


def load_version(settings: Settings, reference: str) -> tuple[dict[str, Any], Manifest]:
    """The program state and the manifest of `project@champion`, `project@3`, or a folder that holds the two files.

    A folder whose name has an `@` is given with a slash, as in `./router@3`.

    Raises:
        RegistryError: nothing has that name (the nearest names are given), a file is missing, is not JSON, or was
            changed.
    """
    if not _REFERENCE.fullmatch(reference):
        return _read_folder(Path(reference).expanduser(), reference, settings)
    found = find_version(settings, reference)
    with (
        tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as scratch,
        session(settings, f"Cannot read the files of {reference}"),
    ):
        from mlflow.artifacts import download_artifacts

        source = f"runs:/{found.run_id}/{FOLDER}"
        folder = download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=settings.tracking_uri)
        state, manifest = _read_folder(Path(folder), reference, settings)
    if manifest.project != found.project:
        raise RegistryError(f"{reference} holds a program of {manifest.project}. Take another version.")
    return state, manifest


def find_version(settings: Settings, reference: str) -> Version:
    """The version that `project@alias` or `project@number` names.

    Raises:
        RegistryError: no such project, version or alias; the nearest names are given.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise RegistryError(f"{reference!r} does not name a version. Write project@champion or project@3.")
    project, which = match["project"], match["which"]
    versions = {version.version: version for version in list_versions(settings, project)}
    see = f" Run `dspy-toolkit programs list {project}`."
    if which.isascii() and which.isdigit():
        if found := versions.get(int(which)):
            return found
        raise RegistryError(f"No version {which} of {project}; {_it_has(versions)}.{see}")
    aliases = {alias: version for version in versions.values() for alias in version.aliases}
    if found := aliases.get(which):
        return found
    if which == CHAMPION:
        raise RegistryError(f"Nothing of {project} is promoted yet; {_it_has(versions)}.{see}")
    raise RegistryError(f"{project} has no alias {which!r}.{nearest(which, aliases)}{see}")


def list_versions(settings: Settings, project: str) -> list[Version]:
    """Every version of `project`, oldest first.

    Raises:
        RegistryError: the registry has no such project (the nearest names are given), or cannot be read.
    """
    if not exists(settings):
        raise RegistryError(_nothing_saved(project, []))
    if _PROJECT.fullmatch(project) and (kept := saved_model(settings, project)) is not None:
        found = [_describe(version, kept.aliases) for version in kept.versions]
        return sorted(found, key=lambda version: version.version)
    with session(settings, f"Cannot list the versions of {project}") as mlflow:
        model = registered_model(mlflow, project)
        if model is None:
            raise RegistryError(_nothing_saved(project, _names(mlflow)))
        found = [_describe(version, model.aliases) for version in _search(mlflow, f"name='{project}'")]
    return sorted(found, key=lambda version: version.version)


def list_projects(settings: Settings) -> list[str]:
    """The names that have a registered model, sorted; empty before the first save."""
    if not exists(settings):
        return []
    if (kept := saved_names(settings)) is not None:
        return sorted(_of_projects(kept))
    with session(settings, "Cannot list the registry's projects") as mlflow:
        return sorted(_names(mlflow))


def registered_model(mlflow: MlflowClient, project: str) -> RegisteredModel | None:
    """The project's registered model with its aliases, or None. Call it inside `mlflow_errors`."""
    from mlflow.exceptions import MlflowException

    if not _PROJECT.fullmatch(project):
        return None
    try:
        return mlflow.get_registered_model(project)
    except MlflowException as error:
        if is_code(error, "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def _make_model(mlflow: MlflowClient, project: str) -> None:
    from mlflow.exceptions import MlflowException

    if registered_model(mlflow, project) is not None:
        return
    try:
        mlflow.create_registered_model(project)
    except MlflowException as error:  # another home on the same server has just made it
        if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
            raise


def _search(mlflow: MlflowClient, condition: str) -> Iterator[ModelVersion]:
    return all_pages(mlflow.search_model_versions, condition, max_results=1000)


def _names(mlflow: MlflowClient) -> list[str]:
    return _of_projects(model.name for model in all_pages(mlflow.search_registered_models, max_results=1000))


def _of_projects(names: Iterable[str]) -> list[str]:
    # Beside projects: models of somebody else, and the turns of promotions.
    return [name for name in names if _PROJECT.fullmatch(name)]


def _describe(version: ModelVersion | SavedVersion, aliases: Mapping[str, Any]) -> Version:
    number = int(version.version)
    previous = version.tags.get(PREVIOUS, "")
    return Version(
        project=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, at in aliases.items() if int(at) == number)),
        previous=int(previous) if previous.isdigit() else None,
        optimizer=version.tags.get("optimizer", ""),
        model=version.tags.get("model", ""),
        program_sha256=version.tags.get("program_sha256", ""),
        run_id=version.run_id or "",
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        promoted=_time(version.tags.get(PROMOTED, "")),
        forced=version.tags.get(FORCED, ""),
    )


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # no tag, or what somebody wrote there by hand
        return None


def _it_has(versions: dict[int, Version]) -> str:
    if not versions:
        return "it has none"
    numbers = [str(number) for number in sorted(versions)]
    return "it has " + ", ".join(numbers if len(numbers) <= 10 else [numbers[0], "…", *numbers[-8:]])


def _nothing_saved(project: str, known: list[str]) -> str:
    return (
        f"The registry has no program of {project!r}.{nearest(project, known)} "
        f"Make one with `python -m flows.optimize_program --project {project}`."
    )


def _read_folder(folder: Path, reference: str, settings: Settings) -> tuple[dict[str, Any], Manifest]:
    if not folder.is_dir():
        hint = "a folder was expected; nothing but JSON is read" if folder.exists() else "there is no such folder"
        raise RegistryError(
            f"Cannot load {reference!r}: {hint}. Write project@champion, project@3, or a folder's path."
        )
    contents: dict[str, bytes] = {}
    for name in (PROGRAM_FILE, MANIFEST_FILE):
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise RegistryError(
                f"Cannot load {reference!r}: no {name} can be read there ({error.strerror}; the folder holds {there}). "
                f"A version is {PROGRAM_FILE} and {MANIFEST_FILE}, and nothing but JSON is read."
            ) from None
    manifest = read_manifest(contents[MANIFEST_FILE], f"{MANIFEST_FILE} of {reference}")
    state = read_program(contents[PROGRAM_FILE], manifest, f"{PROGRAM_FILE} of {reference}")
    bring_parts(state, folder, reference, settings)
    return state, manifest
