"""Saved versions against their projects as they are today: which load, which load by a map, what changed for the others.

A version that an earlier toolkit wrote is read as it is; `migrate(…, write=True)` writes its manifest anew in today's schema, so
that tools which read the file find one form alone. Its program is never changed.

Not covered: what the steps between schemas are (`migrations`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.project import Project, load_named, load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.registry.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest, manifest_bytes, read_object
from dspy_toolkit.registry.programs import misfit
from dspy_toolkit.registry.versions import FOLDER, Version, list_versions, load_version
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.mlflow_client import session
from dspy_toolkit.tracking.runs import write_artifacts

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings

State = Literal["fits", "renamed", "types changed", "does not fit", "no project", "cannot be read"]


class Fit(Frozen):
    """One version, and whether its project can still use it."""

    project: str
    version: int
    champion: bool
    schema_version: int | None
    """That its manifest is written in; None where it cannot be read."""
    written: bool = False
    """Whether its manifest was written anew."""
    state: State
    """`renamed`: it loads by `Project.renames`; `types changed`: it loads, with today's types."""
    what: str = ""
    """What changed, and what to do."""


def migrate(settings: Settings, project: str, location: str = "", *, write: bool = False) -> list[Fit]:
    """See whether every version of a project can still be used; with `write`, bring the manifests to today's schema.

    Args:
        settings: the home and the registry.
        project: its name in the registry.
        location: where the project is, where its name is not enough.
        write: write manifests of earlier schemas anew. Doing so twice changes nothing.

    Raises:
        RegistryError: the registry has no such project, or cannot be read or written.
    """
    versions = list_versions(settings, project)
    own, missing = _project(settings, project, location, versions)
    program = own.build() if own else None
    return [_fit(settings, version, own, program, missing, write=write) for version in versions]


def _fit(
    settings: Settings,
    version: Version,
    project: Project | None,
    program: dspy.Module | None,
    missing: str,
    *,
    write: bool,
) -> Fit:
    reference = f"{version.project}@{version.version}"
    about: dict[str, Any] = {
        "project": version.project,
        "version": version.version,
        "champion": "champion" in version.aliases,
        "schema_version": None,
    }
    try:
        state, manifest = load_version(settings, reference)
        about["schema_version"] = schema = _schema(settings, version)
    except RegistryError as error:
        return Fit(**about, state="cannot be read", what=str(error))
    if write and schema < SCHEMA_VERSION:
        with registry_lock(settings), session(settings, f"The manifest of {reference} was not written") as mlflow:
            write_artifacts(mlflow, version.run_id, {MANIFEST_FILE: manifest_bytes(manifest)}, FOLDER)
        about["written"] = True
    if project is None or program is None:
        return Fit(**about, state="no project", what=missing)
    if problem := misfit(program, state, manifest, project.renames):
        return Fit(
            **about,
            state="does not fit",
            what=f"{_changed(program, manifest)}. {_what_to_run(project)}{_hint(problem)}",
        )
    if any(name in project.renames for name in manifest.signature_fields):
        said = ", ".join(f"{old} → {new}" for old, new in project.renames.items() if old in manifest.signature_fields)
        return Fit(**about, state="renamed", what=said)
    if signature_hash(program) != manifest.signature_sha256:
        what = f"{_changed(program, manifest)}. Today's types are used; optimize it again to tune for them."
        return Fit(**about, state="types changed", what=what)
    return Fit(**about, state="fits")


def _schema(settings: Settings, version: Version) -> int:
    """The schema that a version's manifest is written in."""
    with (
        tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as scratch,
        session(settings, f"Cannot read the manifest of {version.project}@{version.version}"),
    ):
        from mlflow.artifacts import download_artifacts

        source = f"runs:/{version.run_id}/{FOLDER}/{MANIFEST_FILE}"
        path = download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=settings.tracking_uri)
        written = read_object(Path(path).read_bytes(), MANIFEST_FILE).get("schema_version", 1)
    return written if isinstance(written, int) else 1


def _project(settings: Settings, name: str, location: str, versions: list[Version]) -> tuple[Project | None, str]:
    """The project, or why it cannot be loaded."""
    try:
        if location:
            return load_project(location, settings), ""
        if settings.registry.tracking_uri is None and versions:  # places are believed of this home's own registry alone
            _, manifest = load_version(settings, f"{name}@{versions[-1].version}")
            if manifest.location:
                return load_project(manifest.location, settings), ""
        return load_named(name, settings), ""
    except (ProjectError, RegistryError) as error:
        return None, f"{error} Say where the project is with --project."


def _changed(program: dspy.Module, manifest: Manifest) -> str:
    """How the fields were, and how they are."""
    before, now = dict(manifest.signature_fields), {name: str(kind) for name, kind in fields_of(program).items()}
    said = [f"{name} is gone" for name in before if name not in now]
    said += [f"{name} is new" for name in now if name not in before]
    said += [
        f"{name} was {_short(before[name])} and is {_short(now[name])}"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    return ", ".join(said) or "the order or the number of fields changed"


def _short(annotation: str) -> str:
    return annotation.removeprefix("<class '").removesuffix("'>").replace("typing.", "")


def _what_to_run(project: Project) -> str:
    return (
        f'If a field was only renamed, note it: Project.renames = {{"old": "new"}}. Else optimize anew: '
        f"python -m flows.optimize_program --project {project.location or project.name}."
    )


def _hint(problem: str) -> str:
    return f" ({problem.split('.')[0]})" if "predictors" in problem else ""
