"""Finding a project: one registered at run time, one that the settings locate, an installed one, or a file or module.

Installed packages offer projects as entry points of the group `dspy_toolkit.projects`, each under the project's name. A
file or a module is Python that runs: `load_project` is for what a user wrote; `load_named` takes what others wrote as well
(a manifest, a deployment's parameter), for a name leads only to code that the user has registered, located or installed.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.project.definition import Project
from dspy_toolkit.project.toml import read_toml
from dspy_toolkit.settings import Settings
from dspy_toolkit.user_code import import_file, import_named, make_importable, missing_file
from dspy_toolkit.user_sources import text_of_module

GROUP = "dspy_toolkit.projects"
_registered: dict[str, Project] = {}


def register(project: Project) -> None:
    """Make `project` findable by its name in this process; a later one of the same name takes its place."""
    _registered[project.name] = replace(project, location=project.name, folder=project.folder.expanduser().resolve())


def project_names(settings: Settings | None = None) -> list[str]:
    """The names that `load_named` knows, sorted."""
    located = [name for name in settings.projects if settings.location_of(name)] if settings is not None else ()
    return sorted({*_registered, *located, *(point.name for point in entry_points(group=GROUP))})


def load_project(location: str, settings: Settings | None = None) -> Project:
    """Find a project.

    Args:
        location: a name, as `load_named` takes it; `path/to/file.py:attr`, `package.module:attr` (the working folder
            counts) or `path/to/file.toml`, whose code runs. `:attr` may be left out when the file holds one project.
        settings: where names may have a location.

    Raises:
        ProjectError: nothing is there (with the nearest names), it cannot be imported or read, or is not a project.
    """
    location = str(location).strip()
    if location.endswith(".toml"):
        return read_toml(location)
    place, colon, attribute = location.rpartition(":")
    if not colon:
        place, attribute = location, ""
    if place.endswith(".py"):
        return _pick(import_file(Path(place)), attribute, place, location)
    if colon:
        if "/" in place or not place:
            raise ProjectError(f"{location!r} is not a project. Write path/to/file.py:attr or package.module:attr.")
        make_importable(Path.cwd())  # a console script does not have it
        return _pick(import_named(place, None), attribute, place, location)
    if not location or "/" in location:
        found = "is not a project" if Path(location).exists() else missing_file(Path(location).resolve())
        raise ProjectError(f"{location}: {found}. Name a .toml file, or path/to/file.py:attr.")
    return load_named(location, settings)


def load_named(name: str, settings: Settings | None = None) -> Project:
    """The project called `name`; never a path or a module that is spelled so.

    A registered one goes before one that the settings locate (`[projects.NAME] location`), and that before an installed one.

    Raises:
        ProjectError: there is none (with the nearest names), or what the name leads to is not a project of that name.
    """
    if project := _registered.get(name):
        return project
    if settings is not None and (location := settings.location_of(name)):
        return _called(name, load_project(location), f"[projects.{name}] location")
    for point in entry_points(group=GROUP):
        if point.name == name:
            project = _pick(import_named(point.module, None), point.attr, point.module, name)
            return _called(name, project, f"entry point {name!r}")
    raise ProjectError(f"There is no project {name!r}.{nearest(name, project_names(settings))} Or give a .toml file.")


def check_known(location: str, settings: Settings) -> None:
    """Refuse a place that nobody on this machine has agreed to: for a location that came over a network.

    Raises:
        ProjectError: `location` is neither a name that `load_named` knows, nor a place that the settings give to one.
    """
    names = project_names(settings)
    if location not in names and location not in [settings.location_of(name) for name in names]:
        raise ProjectError(
            f"{location!r} is no project that this machine knows by name, and what a deployment names is not run from just "
            f"anywhere.{nearest(location, names)} Write its place into dspy-toolkit.toml, as location in a table "
            "[projects.NAME], or run the flow by hand."
        )


def _called(name: str, project: Project, where: str) -> Project:
    if project.name != name:
        raise ProjectError(f"{where} leads to a project called {project.name!r}. Give both the same name.")
    return project


def _pick(module: ModuleType, attribute: str, place: str, location: str) -> Project:
    """The project `attribute` of `module`, told where it comes from."""
    own = {name: value for name, value in vars(module).items() if isinstance(value, Project)}
    if not attribute:
        if len(own) != 1:
            raise ProjectError(f"{place} holds {len(own)} projects. Write {place}:attr.{nearest('', own)}")
        attribute = next(iter(own))
    project = _look_up(module, attribute)
    if not isinstance(project, Project):
        what = f"no {attribute}" if project is None else f"{attribute}, which is {project!r}, not a Project"
        raise ProjectError(f"{place} has {what}.{nearest(attribute, own)}")
    file = getattr(module, "__file__", None)
    folder = Path(file).parent if file and project.folder == Path() else project.folder
    code = text_of_module(module)
    return replace(project, folder=folder.expanduser().resolve(), location=location, code=code)


def _look_up(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return found
