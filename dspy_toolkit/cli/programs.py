"""`dspy-toolkit programs list` and `history`: what is saved, and what was live.

Not covered: what a program is (`showing`), making versions (the flow `optimize_program`), changing what is live (`promotion`), files
(`bundles`), and new models and schemas (`migration`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dspy_toolkit.registry import Version
    from dspy_toolkit.settings import Settings


def list_programs(
    project: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    json: Json = False,
) -> None:
    """List the projects that have saved programs, or the versions of one.

    Args:
        project: A project's name or file; all projects when it is not given.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.registry import list_projects, list_versions
    from dspy_toolkit.registry.references import project_name
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    names = [project_name(project)] if project else list_projects(settings)
    versions = {name: list_versions(settings, name) for name in names}
    if json:
        every = [version.model_dump(mode="json") for found in versions.values() for version in found]
        print(json_text(every, indent=2))
        return
    console().print(_versions(project, versions[names[0]]) if project else _projects(versions, settings))


def show_champions(
    project: str,
    /,
    *,
    json: Json = False,
) -> None:
    """Show a project's champion and those before it, in the order in which a rollback returns to them.

    Args:
        project: A project's name or file.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.registry import champions
    from dspy_toolkit.registry.references import project_name
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    name = project_name(project)
    found = champions(settings, name)
    if json:
        print(json_text([version.model_dump(mode="json") for version in found], indent=2))
        return
    if not found:
        print(f"Nothing of {name} is promoted yet.")
        return
    rows = [
        (
            f"{version.version} champion" if "champion" in version.aliases else version.version,
            version.promoted,
            version.previous,
            version.optimizer,
            version.forced,
        )
        for version in found
    ]
    console().print(
        listing(("version", "promoted", "replaced", "optimizer", "past the gate, because"), rows, title=name)
    )


def _projects(versions: dict[str, list[Version]], settings: Settings) -> RenderableType:
    from dspy_toolkit.display.tables import listing
    from dspy_toolkit.project import project_names

    if not versions:
        known = ", ".join(project_names(settings)) or "none"
        return (
            f"No program is saved in {settings.path()} yet.\n"
            f"Projects here: {known}. Make a program of one:\n\n"
            "  python -m flows.optimize_program --project NAME"
        )
    rows = []
    for name, found in versions.items():
        live = next((version for version in found if "champion" in version.aliases), None)
        made = max((version.created for version in found), default=None)
        rows.append((name, live and live.version, live and live.optimizer, len(found), made))
    return listing(("project", "champion", "optimizer", "versions", "last saved"), rows)


def _versions(project: str, found: list[Version]) -> RenderableType:
    from dspy_toolkit.display.tables import listing

    if not found:
        return f"{project} has no saved program."
    rows = [
        (
            " ".join([str(version.version), *version.aliases]),
            version.optimizer,
            version.previous,
            version.created,
            version.model,
        )
        for version in found
    ]
    return listing(("version", "optimizer", "replaced", "saved", "model"), rows, title=found[0].project)
