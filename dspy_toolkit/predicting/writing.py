"""The answers to a file of inputs, in a file, going on where an earlier run was stopped.

A line of JSON for each row, in the file's order. Beside it, in `FILE.run.json`, stands which program and which inputs these are the
answers of; with any other ones they are not mixed. Lines are added some rows at a time, all or none of them, so that a kill costs
those rows at most.

Not covered: showing how far it is, which is the caller's (`progress`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.durable import append_lines, write_file
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.locks import held
from dspy_toolkit.predicting.answering import Unreadable, answers
from dspy_toolkit.printable import json_text
from dspy_toolkit.store import digest

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.registry.programs import LoadedProgram

PART = 4
"""Rows that are added at once, for each of the threads."""


def write_answers(
    loaded: LoadedProgram,
    rows: list[dict[str, Any]],
    connection: Connection,
    to: Path,
    *,
    threads: int = 1,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Answer the rows that `to` has no answer of yet.

    Args:
        loaded: the program.
        rows: its inputs.
        connection: the models.
        to: the file of answers, made or gone on with: a line of JSON for each row, in their order. That of a reply which could not
            be read is `{"error": …}`.
        threads: rows that are under way at once.
        progress: told how many rows have their answer in the file, and how many there are: once before the first is asked, then
            after each part that was written.

    Returns:
        How many of all the replies could not be read.

    Raises:
        DatasetError: `to` holds answers of another program, other inputs or another model, or cannot be written.
        ToolkitError: the model failed; what was answered is kept.
    """
    with held(to.with_name(f"{to.name}.lock"), 0.0, DatasetError):
        before = _begun(to, _whose(loaded, rows, connection.model))
        unreadable = sum("error" in line and len(line) == 1 for line in before)
        done = len(before)
        progress(done, len(rows))
        made = answers(loaded, rows[done:], connection, threads)
        while part := list(islice(made, PART * threads)):
            unreadable += sum(isinstance(answer, Unreadable) for answer in part)
            lines = [{"error": str(answer)} if isinstance(answer, Unreadable) else answer for answer in part]
            append_lines(to, "".join(f"{json_text(line)}\n" for line in lines).encode(), DatasetError)
            done += len(part)
            progress(done, len(rows))
    return unreadable


def _whose(loaded: LoadedProgram, rows: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """What a file of answers is the answers of."""
    from dspy_toolkit.optimizers.states import prompt_of

    program = digest(prompt_of(loaded.program))
    return {
        "project": loaded.project.name,
        "program": program,
        "model": model,
        "abstain_below": loaded.project.abstain_below,
        "inputs": digest(_plain(rows)),
    }


def _begun(to: Path, whose: dict[str, str]) -> list[dict[str, Any]]:
    """The answers that are there already."""
    mark = to.with_name(f"{to.name}.run.json")
    if not to.exists():
        write_file(mark, json.dumps(whose, indent=2).encode(), DatasetError)
        return []
    try:
        before = json.loads(mark.read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{to} is there, and does not say what it is: {error}. Remove it, or give another file with --to."
        ) from error
    if differs := [name for name, value in whose.items() if before.get(name) != value]:
        raise DatasetError(
            f"{to} holds the answers of another run, which differs in {', '.join(differs)}. Remove it, or "
            "give another file with --to."
        )
    return lines


def _plain(rows: list[dict[str, Any]]) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(rows, fallback=str)
