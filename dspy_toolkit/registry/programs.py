"""A program by its name: `project@champion`, `project@3`, a folder, or a project.

Covered: finding the project that a saved program belongs to, making its program and loading the saved state, with
fields that were renamed since. The settings decide which LM runs it: an LM inside a saved state is not used.

Not covered: reading and checking the saved files (`dspy_toolkit.registry`), running the program.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.lm.levers import clear
from dspy_toolkit.project import ChampionPart, Project, load_named, load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.project.states import predictor_states, renamed
from dspy_toolkit.registry import champion, find_version, list_projects, load_version
from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.registry.references import is_location, is_saved, is_version, project_name

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)


class LoadedProgram(NamedTuple):
    """A program that can be called."""

    program: dspy.Module
    manifest: Manifest | None
    """None: the project's own program, which nothing has optimized."""
    project: Project


def load_program(settings: Settings, reference: str, location: str = "") -> LoadedProgram:
    """Make the program that `reference` names.

    Args:
        settings: the home and the registry.
        reference: `project@champion`, `project@3`, a folder that holds program.json and manifest.json; or a project (a
            name, `path/to/file.py:attr`, `path/to/file.toml`), which means its champion, or its own program while
            nothing is promoted.
        location: where the project is, where its name is not enough. Code of other places is not run: what a folder's
            manifest or that of a shared registry calls its project is looked for by name (`load_named`); only this
            home's own registry is believed about the place as well.

    Raises:
        RegistryError: nothing has that name, its files cannot be used, or it does not fit the project any more.
        ProjectError: the project cannot be found, or its program cannot be made.
    """
    state, manifest = load_state(settings, reference, location)
    if manifest is None:
        project = load_project(location or reference, settings)
        return LoadedProgram(project.build(), None, project)
    if is_location(reference) and not is_version(reference) and not is_saved(reference):
        location = location or reference
    project = _find_project(manifest, reference, location, settings)
    program = project.build()
    _fill(program, state, manifest, project.renames, reference)
    return LoadedProgram(program, manifest, project)


def live_program(live: ChampionPart, project: Project, settings: Settings) -> LoadedProgram:
    """The champion as it was when `live` was read; the project's own program while there was none.

    Raises:
        RegistryError, ProjectError: as `load_program`.
    """
    if live.version is None:
        return LoadedProgram(project.build(), None, project)
    return load_program(settings, f"{project.name}@{live.version}", project.location)


def load_state(settings: Settings, reference: str, location: str = "") -> tuple[dict[str, Any], Manifest | None]:
    """The saved state behind `reference`, as `load_program` understands it; ({}, None) while nothing is promoted.

    It works also when the project of a saved program no longer exists.
    """
    if is_version(reference) or is_saved(reference):
        return load_version(settings, reference)
    name = project_name(reference) if is_location(reference) else reference
    if champion(settings, name).version is not None:
        return load_version(settings, f"{name}@champion")
    try:
        load_project(location or reference, settings)
    except ProjectError:
        if name in list_projects(settings):
            find_version(settings, f"{name}@champion")  # raises, and says which versions there are
        if Path(reference).expanduser().is_dir():
            load_version(settings, reference)  # raises, and says what the folder lacks
        raise
    return {}, None


def own_state(settings: Settings, reference: str, location: str = "") -> dict[str, Any]:
    """The state of a project's own program, which nothing has optimized, as JSON. Raises ProjectError."""
    return json.loads(json.dumps(load_project(location or reference, settings).build().dump_state(), default=str))


def _find_project(manifest: Manifest, reference: str, location: str, settings: Settings) -> Project:
    """The project of a saved program: where the caller says, else where it was, else by its name."""
    if location:
        return load_project(location, settings)
    # Loading a project runs its code. A place that this home's own runs noted is the user's; what a folder or somebody's
    # server says is a name to look for, and no more.
    own, missing = settings.registry.tracking_uri is None and not is_saved(reference), ""
    if own and manifest.location:
        try:
            return load_project(manifest.location, settings)
        except ProjectError as error:
            missing = str(error)
    try:
        return load_named(manifest.project, settings)
    except ProjectError as error:
        raise ProjectError(
            f"The project of {reference} cannot be loaded: {missing or error} Say where it is with `--project LOCATION`."
        ) from error


def _fill(
    program: dspy.Module, state: dict[str, Any], manifest: Manifest, renames: Mapping[str, str], reference: str
) -> None:
    if problem := misfit(program, state, manifest, renames):
        raise RegistryError(f"{reference} does not fit its project any more: {problem}")
    if not renames and signature_hash(program) != manifest.signature_sha256:
        log.warning("The types of the fields have changed since %s was saved; today's are used.", reference)
    own = {name: predictor.lm for name, predictor in program.named_predictors()}
    for _, predictor in program.named_predictors():
        clear(predictor)
    try:
        program.load_state(renamed(state, renames))
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(
            f"{reference} does not fit its project any more: {type(error).__name__}: {error}. Optimize it again."
        ) from error
    for name, predictor in program.named_predictors():
        predictor.lm = own[name]


def misfit(program: dspy.Module, state: Mapping[str, Any], manifest: Manifest, renames: Mapping[str, str]) -> str:
    """Why a saved state does not fit a program, and what to do; empty where it does.

    Args:
        program: of the project as it is.
        state, manifest: as they were saved.
        renames: old field name → new.
    """
    saved = {renames.get(name, name) for name in manifest.signature_fields}
    fields = set(fields_of(program))
    if saved != fields:
        return (
            f"it was saved with {_listed(saved)}, and the project now has {_listed(fields)}. Optimize it again, or note "
            "renamed fields in Project.renames."
        )
    if _shape(state) != _shape(program.dump_state()):
        return f"its predictors were {_shapes(state)}, and the project's are {_shapes(program.dump_state())}. Optimize it again."
    return ""


def _shape(state: Mapping[str, Any]) -> dict[str, int]:
    """Predictor → number of its fields. DSPy itself loads what fits, without a warning."""
    return {name: len(part["signature"]["fields"]) for name, part in predictor_states(state).items()}


def _shapes(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{name or 'one'} with {count} fields" for name, count in sorted(_shape(state).items())) or "none"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no fields"
