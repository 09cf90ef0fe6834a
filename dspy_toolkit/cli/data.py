"""`dspy-toolkit data`: is something wrong with the rows, which split is each in, what does one say; rows from feedback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from rich.console import RenderableType

    from dspy_toolkit.datasets import DatasetReport
    from dspy_toolkit.pipeline.rows import DataCheck, RowShown

LISTED = 20
"""Findings of one kind that are printed; `--json` has them all."""
CHARACTERS = 60
"""Of a value in a list of rows."""


def check(
    project: str, /, *, file: Annotated[Path | None, Parameter(show_default=False)] = None, json: Json = False
) -> None:
    """Check a project's rows against its signature, and say how they would be split. Nothing is written.

    The exit code is 1 where a row does not fit, for CI.

    Args:
        project: A name, path/to/project.toml, or path/to/file.py:attr.
        file: A file in place of the project's, such as the one that is to replace it.
        json: Print JSON, for scripts.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.pipeline.rows import check_data
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    found = check_data(settings, project, file)
    if json:
        print(json_text(found.model_dump(mode="json"), indent=2))
    else:
        console().print(Group(*_findings(found)))
    if found.report.bad_rows:
        raise SystemExit(1)


def split(
    project: str, /, *, to: Annotated[Path | None, Parameter(show_default=False)] = None, json: Json = False
) -> None:
    """Give every row of a project its split, for good, as its first run does.

    Args:
        project: A name, path/to/project.toml, or path/to/file.py:attr.
        to: A folder for train.jsonl and val.jsonl, for another tool; sealed.jsonl only where the settings show sealed rows.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.pipeline.rows import split_data, write_splits
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    report = split_data(settings, project)
    written = write_splits(settings, project, to) if to is not None else {}
    if json:
        print(json_text({"report": report.model_dump(mode="json"), "files": written}, indent=2))
        return
    console().print(_splits(report))
    for name, rows in written.items():
        print(f"{to}/{name}: {rows} rows")


def show(
    project: str,
    row: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    split: Annotated[Literal["train", "val", "sealed"] | None, Parameter(show_default=False)] = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1))] = LISTED,
    json: Json = False,
) -> None:
    """Show the rows of a project with their splits, or one row in full. Sealed rows are not shown.

    Args:
        project: A name, path/to/project.toml, or path/to/file.py:attr.
        row: The row's number in the file, or the beginning of its hash, as the tables of runs have it.
        split: train or val; both by default.
        limit: At most so many rows.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, properties
    from dspy_toolkit.pipeline.rows import show_row, show_rows
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    if row is not None:
        one = show_row(settings, project, row)
        if json:
            print(json_text(one.model_dump(mode="json"), indent=2))
            return
        about = [("row", one.number), ("hash", one.row), ("split", one.split)]
        console().print(properties([*about, *((name, _text(value)) for name, value in _values(one).items())]))
        return
    rows = show_rows(settings, project, split)
    if json:
        print(json_text([each.model_dump(mode="json") for each in rows[:limit]], indent=2))
        return
    console().print(_rows(rows[:limit]))
    if len(rows) > limit:
        print(f"… and {len(rows) - limit} more: --limit {len(rows)}")


def from_feedback(
    program: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Write labelled requests as rows of a dataset, each input once; rows that the project has already are left out.

    Args:
        program: The name under which it was served.
        output: A .jsonl file that is not there yet.
        project: Where its project is, if its name is not enough.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.project import load_project
    from dspy_toolkit.serving.dataset import check_some, rows_of, write_rows
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    check_some(settings, program)
    found = rows_of(settings, load_project(project or program, settings), program)
    write_rows(output, found.rows)
    if json:
        counts = {"entries": found.entries, "unlabelled": found.unlabelled, "known": found.known}
        print(json_text({"file": str(output), "rows": len(found.rows), **counts}, indent=2))
        return
    print(
        f"{output}: {len(found.rows)} rows of {found.entries} pieces of feedback; {found.unlabelled} requests without labels, "
        f"{found.known} known already."
    )


def _findings(found: DataCheck) -> Iterator[RenderableType]:
    from rich.text import Text

    from dspy_toolkit.display.tables import properties

    report = found.report
    lengths = ", ".join(
        f"{name} {each.min} to {each.max}, half of them under {each.median:g}" for name, each in report.lengths.items()
    )
    about: list[tuple[str, Any]] = [
        ("file", found.file),
        ("rows", report.rows),
        ("not placed yet", found.new),
        ("copies", report.duplicates),
        ("near-duplicates", report.near_duplicates),
        ("characters", lengths),
    ]
    yield properties(about)
    yield ""
    yield _splits(report)
    alike = [f"rows {', '.join(map(str, numbers))}" for numbers in report.near_duplicate_rows]
    for what, lines in (
        ("These do not fit", report.bad_rows),
        ("These contradict each other; they share a split", report.contradictions),
        ("These belong to two splits, and are in none", report.set_aside),
        ("These are near-duplicates; they share a split", alike),
    ):
        if lines:
            yield ""
            yield Text(f"{what}:", style="bold")
            yield from (Text(line) for line in lines[:LISTED])
            if len(lines) > LISTED:
                yield f"… and {len(lines) - LISTED} more: --json has them all"


def _splits(report: DatasetReport) -> RenderableType:
    from dspy_toolkit.datasets import SPLITS
    from dspy_toolkit.display.tables import listing

    labels = sorted({label for counts in report.classes.values() for label in counts})
    lines = [
        ("groups", *(report.groups[split] for split in SPLITS)),
        ("rows", *(report.splits[split] for split in SPLITS)),
        *((f"  {label}", *(report.classes[split].get(label, 0) for split in SPLITS)) for label in labels),
    ]
    return listing(("", *SPLITS), lines)


def _rows(rows: Sequence[RowShown]) -> RenderableType:
    from dspy_toolkit.display.tables import listing

    names = list(_values(rows[0])) if rows else []
    cells = [
        (row.number, row.split, row.row[:8], *(_cut(_text(value)) for value in _values(row).values())) for row in rows
    ]
    return listing(("row", "split", "hash", *names), cells)


def _values(row: RowShown) -> dict[str, Any]:
    return {**row.inputs, **row.outputs}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"
