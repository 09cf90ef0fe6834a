"""`dspy-toolkit programs`: listing and showing saved programs, and rolling back.

Not covered: making versions (the flow `optimize_program`) and promoting one without the gate.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dspy_toolkit.registry import Manifest, Version
    from dspy_toolkit.settings import Settings

SHOWN = 600
"""Characters of one value of a demo that are shown."""


def list_programs(
    project: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """List the projects that have saved programs, or the versions of one.

    Args:
        project: A project's name or file; all projects when it is not given.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.registry import list_projects, list_versions
    from dspy_toolkit.registry.programs import project_name
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


def show_program(
    program: str,
    /,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Show a program: its instructions, its demos, where it came from and how it scored.

    Args:
        program: A project (its champion, else its own program), project@champion, project@3 or a folder.
        json: Print the manifest and the state as JSON.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, properties
    from dspy_toolkit.project import load_project
    from dspy_toolkit.registry.programs import load_state
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    state, manifest = load_state(settings, program)
    if manifest is None:
        state = load_project(program, settings).build().dump_state()
    if json:
        about = manifest.model_dump(mode="json") if manifest else None
        print(json_text({"manifest": about, "program": state}, indent=2))
        return
    parts: list[RenderableType] = []
    if manifest is None:
        parts.append(f"{program}: nothing is promoted; this is the project's own program.")
    else:
        parts.append(properties(_origin(manifest), title=program))
    console().print(Group(*parts, *_predictors(state)))


def roll_back(project: str, /) -> None:
    """Make the program that the champion replaced the champion again.

    The version rolled back from stays saved. A second rollback goes one further back.

    Args:
        project: A project's name or file.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry import champion, rollback
    from dspy_toolkit.registry.programs import project_name
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    name = project_name(project)
    before = champion(settings, name).version
    after = rollback(settings, name)
    print(f"{name}: the champion was version {before} and is version {after} now.")


def _projects(versions: dict[str, list[Version]], settings: Settings) -> RenderableType:
    from dspy_toolkit.display.tables import listing
    from dspy_toolkit.project import project_names

    if not versions:
        known = project_names(settings)
        name = known[0] if known else "path/to/project.toml"
        return (
            f"No program is saved in {settings.path()} yet.\n"
            f"Projects here: {', '.join(known) or 'none'}. Make a program of one:\n\n"
            f"  python -m flows.optimize_program --project {name}"
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


def _origin(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    from dspy_toolkit.display.tables import percent, points

    yield "project", f"{manifest.project} ({manifest.location})" if manifest.location else manifest.project
    yield "fields", ", ".join(f"{name}: {_kind(kind)}" for name, kind in manifest.signature_fields.items())
    yield "optimizer", " ".join([manifest.optimizer, *(f"{k}={v}" for k, v in manifest.optimizer_settings.items())])
    yield "model", manifest.model
    yield "metric", manifest.metric
    yield "trained on", f"{len(manifest.trained_rows):,} rows"
    yield "saved", manifest.created
    parent = f"version {manifest.parent}" if isinstance(manifest.parent, int) else manifest.parent
    yield "started from", parent or "the project's own program"
    if manifest.previous_champion:
        yield "champion then", f"version {manifest.previous_champion}"
    for name, report in manifest.reports.items():
        if not isinstance(report, dict):
            continue
        if "delta" in report:
            ends = f"[{100 * report.get('low', 0):+.1f}, {100 * report.get('high', 0):+.1f}]"
            yield name, f"{points(report['delta'])} {ends}"
        elif "mean" in report:
            ends = f"[{100 * report.get('low', 0):.1f}, {100 * report.get('high', 0):.1f}]"
            yield name, f"{percent(report['mean'])} {ends} on {report.get('n', '?')} rows"


def _predictors(state: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    from dspy_toolkit.display.tables import properties
    from dspy_toolkit.project.states import levers_in_words, predictor_states

    for name, part in predictor_states(state).items():
        yield ""
        yield Text(f"Instructions of {name}" if name else "Instructions", style="bold underline")
        yield Text(part["signature"]["instructions"])
        for lever in levers_in_words(part):
            yield ""
            yield Text(f"{lever[0].upper()}{lever[1:]}", style="bold underline")
        demos = part.get("demos") or []
        yield ""
        yield Text(f"Demos: {len(demos)}" if demos else "No demos", style="bold underline")
        for number, demo in enumerate(demos, start=1):
            yield Text(f"{number}, answered by a model" if demo.get("augmented") else str(number), style="dim")
            yield properties((name, _shortened(demo[name])) for name in _in_order(demo, part["signature"]))


def _kind(annotation: str) -> str:
    """`<class 'str'>` and `typing.Literal['a']` as a person would write them."""
    return re.sub(r"<class '([^']*)'>", r"\1", annotation).replace("typing.", "")


def _in_order(demo: dict[str, Any], signature: dict[str, Any]) -> list[str]:
    """The field names of a demo, inputs first. A saved state is sorted; its fields' prefixes (`User Name:`) are not."""
    prefixes = [_letters(field["prefix"]) for field in signature["fields"]]
    known = {name: _letters(name) for name in demo if name not in ("augmented", "dspy_uuid", "dspy_split")}
    return sorted(known, key=lambda name: prefixes.index(known[name]) if known[name] in prefixes else len(prefixes))


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json_text(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"
