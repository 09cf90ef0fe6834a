"""`dspy-toolkit data`: rows of a dataset from what users said of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text


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
