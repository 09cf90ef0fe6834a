"""`dspy-toolkit projects`: what there is to optimize, a new project from a template, and what is wrong with one.

Not covered: optimizing (the flow `optimize_program`), and saved programs (`programs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dspy_toolkit.pipeline.validate import Finding


def list_all(*, json: Json = False) -> None:
    """List the projects that are known by name: installed ones, and those that dspy-toolkit.toml locates.

    Args:
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.project.listing import list_known
    from dspy_toolkit.registry import champion, list_projects
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    saved = set(list_projects(settings))
    rows: list[dict[str, Any]] = []
    for known in list_known(settings):
        live = champion(settings, known.name).version if known.name in saved else None
        rows.append({**known._asdict(), "champion": live})
    if json:
        print(json_text(rows, indent=2))
        return
    shown = [
        (
            row["name"],
            row["champion"],
            row["summary"] or row["fault"],
            row["location"] if row["location"] != row["name"] else "",
        )
        for row in rows
    ]
    console().print(listing(("project", "champion", "", "where"), shown) if rows else _no_project())


def show_project(project: str, /, *, json: Json = False) -> None:
    """Show a project: its fields, its metric, its rows, what is live.

    Args:
        project: A name, path/to/project.toml, or path/to/file.py:attr.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, properties
    from dspy_toolkit.project import load_project
    from dspy_toolkit.project.listing import describe
    from dspy_toolkit.registry import champion
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    found = load_project(project, settings)
    about = describe(found) | {"champion": champion(settings, found.name).version}
    if json:
        print(json_text(about, indent=2))
        return
    shown = [(name, _said(value)) for name, value in about.items() if value not in (None, "", [], {})]
    console().print(properties(shown))


def new(
    name: str,
    /,
    *,
    template: Annotated[str, Parameter(show_default=True)] = "classify",
    source: Annotated[Path | None, Parameter(name="--from", show_default=False)] = None,
    into: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> None:
    """Write a small whole project into a new folder: program, metric, rows and tests, which pass as they are.

    Args:
        name: Lower-case letters, digits, - and _; also the folder's name.
        template: classify, extract, generate, advise, rag, lora, diffusion, clip or federated.
        source: In place of a template: the tests of promptfoo (.yaml, .json), or samples of OpenAI Evals (.jsonl).
        into: The folder that the new one goes into; the working folder by default.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.scaffold import from_evals, new_project

    made = from_evals(name, source, into) if source else new_project(name, template, into)
    if json:
        told = {"folder": str(made.folder), "project": str(made.project), "files": made.files}
        print(json_text(told, indent=2))
        return
    print(f"{made.folder}/ has {', '.join(made.files)}. Next:\n")
    print(f"  dspy-toolkit projects validate {made.project}")
    if "test_project.py" in made.files:
        print(f"  python -m pytest {made.folder}")
    print(f"  python -m flows.optimize_program --project {made.project}")


def validate_project(project: str, /, *, json: Json = False) -> None:
    """Look a project over before a run: signature, program, metric, dataset, each finding with its fix. No model is asked.

    The exit code is 1 where something is wrong, for CI.

    Args:
        project: A name, path/to/project.toml, or path/to/file.py:attr.
        json: Print JSON, for scripts.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.pipeline.validate import validate, worst
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    found = validate(settings, project)
    if json:
        print(json_text([finding.model_dump(mode="json") for finding in found], indent=2))
    else:
        console().print(Group(*_findings(found)))
    if worst(found) == "wrong":
        raise SystemExit(1)


def _findings(found: list[Finding]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from dspy_toolkit.pipeline.validate import by_subject

    marks = {"ok": Text("✓", "green"), "note": Text("!", "yellow"), "wrong": Text("✗", "bold red")}
    parts: list[RenderableType] = []
    for subject, findings in by_subject(found):
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(overflow="fold")
        for finding in findings:
            said = Text(finding.what)
            if finding.fix:
                said.append(f"\n{finding.fix}", style=marks[finding.state].style)
            table.add_row(marks[finding.state], said)
        parts += [Text(subject.capitalize(), "bold underline"), table]
    return parts


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _no_project() -> str:
    return "No project is known here. Make one: `dspy-toolkit projects new NAME`."
