"""Keeping a bundle's program as a version of a project here. It is not live before it is promoted.

The project is one that this home knows by its name, or one that the caller names: nothing that the bundle says is run or looked
up as a place. Where the two projects call their fields differently, the caller maps them.

Not covered: reading and checking the file (`bundle`), promoting (`promotion`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ModelNotFound, ProjectError, RegistryError, nearest
from dspy_toolkit.lm.models.adapters import add_adapter, find_adapter
from dspy_toolkit.project import Project, load_named, load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.project.states import renamed
from dspy_toolkit.registry.bundle import Bundle, read_bundle
from dspy_toolkit.registry.manifest import Imported, Manifest, program_bytes
from dspy_toolkit.registry.parts import adapters_of, row_sets_of
from dspy_toolkit.registry.programs import misfit
from dspy_toolkit.registry.references import lasting_location
from dspy_toolkit.registry.versions import list_projects, list_versions, save_version
from dspy_toolkit.store import Frozen, Ref, Store
from dspy_toolkit.tracking.runs import close_failed, open_run, record_run

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


class ImportedVersion(Frozen):
    """What an import made."""

    project: str
    version: int
    origin: Imported
    there_already: bool
    """Whether the project had this program already, as this version; nothing was written then."""
    fits: bool
    """Whether it was seen to fit the project; False where no project of the name is known here yet."""


def import_program(
    settings: Settings, path: Path | str, project: str = "", fields: Mapping[str, str] | None = None
) -> ImportedVersion:
    """Read a bundle and keep its program.

    Args:
        settings: the home and the registry.
        path: a file that `dspy-toolkit programs export` wrote.
        project: a project's name or place, whose version it becomes; the bundle's own name by default.
        fields: field name in the bundle → field name here.

    Raises:
        RegistryError: the file is no bundle, was changed, or does not fit the project.
        ProjectError: `project` cannot be loaded.
        ModelError: an adapter in it is none.
    """
    path = Path(path).expanduser()
    bundle = read_bundle(path)
    found = _project(settings, project, bundle.about.project)
    name = found.name if found else project or bundle.about.project
    state, manifest = _adapted(bundle, found, name, dict(fields or {}), str(path))
    origin = Imported(project=bundle.about.project, version=bundle.about.version, bundle_sha256=bundle.sha256)
    sha256 = hashlib.sha256(program_bytes(state)).hexdigest()
    if name in list_projects(settings):
        for version in list_versions(settings, name):
            if version.program_sha256 == sha256 and version.model == manifest.model:
                return ImportedVersion(
                    project=name, version=version.version, origin=origin, there_already=True, fits=found is not None
                )
    _keep_parts(bundle, settings)
    source = f"{origin.project}@{origin.version}" if origin.version is not None else origin.project
    run_name = f"import {source}"
    run_id = open_run(settings, name, run_name)
    try:
        saved = save_version(settings, name, state, manifest.model_copy(update={"imported": origin}), run_id)
        parameters = {"optimizer": manifest.optimizer, "model": manifest.model, "imported_from": source}
        tags = {"version": saved, "bundle_sha256": bundle.sha256}
        record_run(settings, name, run_name, parameters, {}, tags=tags, run_id=run_id)
    except BaseException:
        close_failed(settings, run_id)
        raise
    return ImportedVersion(project=name, version=saved, origin=origin, there_already=False, fits=found is not None)


def _project(settings: Settings, asked: str, named: str) -> Project | None:
    if asked:
        return load_project(asked, settings)
    try:
        return load_named(named, settings)
    except ProjectError:
        return None  # it may be registered here later; a program that does not fit it then says so when it is loaded


def _adapted(
    bundle: Bundle, project: Project | None, name: str, fields: dict[str, str], where: str
) -> tuple[dict[str, Any], Manifest]:
    """The bundle's program and manifest, for the project here."""
    manifest = bundle.manifest
    for old in fields:
        if old not in manifest.signature_fields:
            raise RegistryError(f"{where} has no field {old!r}.{nearest(old, manifest.signature_fields)}")
    if len({fields.get(old, old) for old in manifest.signature_fields}) < len(manifest.signature_fields):
        raise RegistryError(f"{where}: two fields would have one name. Correct --map.")
    state = renamed(bundle.state, fields)
    changes: dict[str, Any] = {
        "project": name,
        "location": lasting_location(project.location) if project else "",
        "signature_fields": {fields.get(old, old): kind for old, kind in manifest.signature_fields.items()},
        # Versions of another registry mean nothing here.
        "parent": f"{manifest.project}@{manifest.parent}" if isinstance(manifest.parent, int) else manifest.parent,
        "previous_champion": None,
        "anchor": None,
    }
    if (verdict := manifest.verdict) is not None and verdict.champion is not None:
        # Its number means nothing here. Without the program's hash only its own home knows which champion that was.
        known = bool(verdict.champion_sha256)
        changes["verdict"] = verdict.model_copy(update={"champion": None}) if known else None
    if project is not None:
        program = project.build()
        mapping = {**project.renames, **fields}
        if problem := misfit(program, bundle.state, manifest, mapping):
            here = ", ".join(sorted(fields_of(program)))
            raise RegistryError(
                f"{where} does not fit {project.name}: {problem} Fields that only have other names are mapped with "
                f"--map OLD=NEW; the project's are {here}."
            )
        changes["signature_fields"] = {key: str(kind) for key, kind in fields_of(program).items()}
        changes["signature_sha256"] = signature_hash(program)
        state = renamed(bundle.state, mapping)
    return state, manifest.model_copy(update=changes)


def _keep_parts(bundle: Bundle, settings: Settings) -> None:
    for sha256, files in bundle.adapters.items():
        with tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as scratch:
            for name, data in files.items():  # names that `bundle` knows
                Path(scratch, name).write_bytes(data)
            if (added := add_adapter(settings.path(), Path(scratch)).sha256) != sha256:
                raise RegistryError(f"The bundle calls the adapter {added[:8]} {sha256[:8]}. Export it again.")
    for sha256 in adapters_of(bundle.state):
        try:
            find_adapter(settings.path(), sha256)
        except ModelNotFound as error:
            raise RegistryError(
                f"The program has the adapter {sha256[:8]}, which neither the bundle nor this home holds. Export it again."
            ) from error
    store = Store(settings.objects)
    for sha256 in row_sets_of(bundle.state):
        if sha256 in bundle.rows:
            store.save(bundle.rows[sha256], "json")
        elif not store.exists(Ref(sha256=sha256, kind="json")):
            raise RegistryError(
                f"The program chooses demonstrations among rows ({sha256[:8]}) that neither the bundle nor this home holds. Export "
                "it again."
            )
