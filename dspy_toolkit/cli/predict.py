"""`dspy-toolkit predict`: run a program on one input, or on a file of them.

Inputs come from options (`--request "…"`, or `--input request=…` for a field named like an option), from `--row`, from
JSON on stdin, or from a file of rows. With a file there is one line of JSON for each row, in the file's order, as soon
as it is known; a row whose reply could not be parsed has its line too, `{"error": …}`, and the exit code is then 1.

Not covered: running the program, and keeping the answers to a file (`dspy_toolkit.predicting`); scoring them.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import DatasetError, nearest
from dspy_toolkit.predicting import Unreadable, answer, answers, fit, input_types, read_file
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.registry.programs import LoadedProgram


def predict(
    program: str,
    /,
    *,
    inputs: Annotated[tuple[str, ...], Parameter(name=["--input", "-i"], negative="", show_default=False)] = (),
    row: Annotated[str | None, Parameter(show_default=False)] = None,
    file: Annotated[Path | None, Parameter(name=["--file", "-f"], show_default=False)] = None,
    to: Annotated[Path | None, Parameter(show_default=False)] = None,
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
    **fields: Annotated[str, Parameter(name="--FIELD", help="An input of the program by its name.")],
) -> None:
    """Run a program on an input, or on every row of a file.

    Without --to the answers to a file go to stdout, with no bar, and a run that is stopped begins anew.

    Args:
        program: A project (its champion, else its own program), project@champion, project@3 or a folder.
        inputs: One input as NAME=VALUE; give it once for each.
        row: All inputs as one JSON object. JSON on stdin does as well.
        file: A .jsonl, .csv or .parquet file of inputs; prints one line of JSON for each row.
        to: With --file, write the lines into this file, with a bar; started again it goes on where it was stopped.
        project: Where the program's project is, if it is neither installed nor where it was.
        json: Print JSON, for scripts; the answers to a file are JSON in any case, and with --to it says how many there are.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.lm import connect
    from dspy_toolkit.registry.programs import load_program
    from dspy_toolkit.settings import load_settings

    if to is not None and file is None:
        raise DatasetError("--to is for the answers to a file. Add --file, or leave it out.")
    settings = load_settings()
    show_log(settings)
    loaded = load_program(settings, program, project)
    rows = read_file(file, loaded) if file else [read_inputs(loaded, inputs, fields, row)]
    if loaded.manifest is None:
        print(
            f"Nothing of {loaded.project.name} is promoted yet: this is its own program, not optimized.",
            file=sys.stderr,
        )
    settings = settings.for_project(loaded.project.name)
    connection = connect(settings)
    if file and to:
        from dspy_toolkit.predicting import write_answers

        threads = settings.optimize.threads
        with _bar(to, shown=settings.observe.progress) as bar:
            unreadable = write_answers(loaded, rows, connection, to, threads=threads, progress=bar)
        if json:
            print(json_text({"file": str(to), "rows": len(rows), "unreadable": unreadable}))
        if unreadable:
            raise Unreadable(
                f"{unreadable} of {len(rows)} replies could not be read; their lines in {to} hold an error."
            )
        return
    if file:
        print_rows(loaded, rows, connection, settings.optimize.threads)
        return
    outputs = answer(loaded, rows[0], connection)
    if json:
        print(json_text(outputs))
    else:
        from dspy_toolkit.display.tables import console, properties

        console().print(properties([(name, _shown(value)) for name, value in outputs.items()]))


def read_inputs(
    loaded: LoadedProgram, pairs: tuple[str, ...], options: dict[str, str], text: str | None
) -> dict[str, Any]:
    """One call's inputs, as the signature's types.

    Args:
        loaded: the program, and the project that names its inputs.
        pairs: `NAME=VALUE`.
        options: what was given as `--NAME VALUE`; dashes may stand for underscores.
        text: a JSON object. Without any of these, stdin is read.

    Raises:
        DatasetError: an input is unknown, missing, given twice, or does not fit its type.
    """
    expected = loaded.project.dataset.inputs
    given: dict[str, Any] = {}
    entries: list[tuple[str, Any]] = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise DatasetError(f"--input {pair!r} has no =. Write --input {expected[0]}=VALUE.")
        entries.append((name.strip(), value))
    entries += [(name if name in expected else name.replace("-", "_"), value) for name, value in options.items()]
    if text is None and not entries and sys.stdin is not None and not sys.stdin.isatty():
        text = sys.stdin.read().strip() or None
    if text is not None:
        entries += _object(text).items()
    for name, value in entries:
        if name not in expected:
            raise DatasetError(
                f"{loaded.project.name} has no input {name!r}.{nearest(name, expected)} {_usage(expected)}"
            )
        if name in given:
            raise DatasetError(f"The input {name!r} is given twice. Give it once.")
        given[name] = value
    if missing := [name for name in expected if name not in given]:
        raise DatasetError(
            f"{loaded.project.name} needs the input{'s' * (len(missing) > 1)} {', '.join(missing)}. {_usage(expected)}"
        )
    types = input_types(loaded)
    return {name: fit(name, given[name], types[name]) for name in expected}


def print_rows(loaded: LoadedProgram, rows: list[dict[str, Any]], connection: Connection, threads: int) -> None:
    """Run a program on `rows`, `threads` at once, and print one line of JSON for each, in order.

    Raises:
        Unreadable: after the last line, when some replies could not be read; their lines say so.
    """
    unreadable = 0
    for outputs in answers(loaded, rows, connection, threads):
        unreadable += isinstance(outputs, Unreadable)
        print(json_text({"error": str(outputs)} if isinstance(outputs, Unreadable) else outputs), flush=True)
    if unreadable:
        raise Unreadable(f"{unreadable} of {len(rows)} replies could not be read; their lines hold an error.")


@contextmanager
def _bar(to: Path, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """What draws a bar on stderr, and says what of the file is there already."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from dspy_toolkit.display.tables import console

    stderr = console(stderr=True)
    bar = Progress(
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(compact=True), console=stderr, transient=True,
        disable=not (shown and stderr.is_terminal),
    )  # fmt: skip
    with ExitStack() as drawn:

        def show(done: int, total: int) -> None:
            if bar.tasks:
                bar.update(bar.task_ids[0], completed=done)
                return
            if done:
                print(f"{to} has {done} of {total} answers already; the others are made.", file=sys.stderr)
            drawn.enter_context(bar)
            bar.add_task("", total=total, completed=done)

        yield show


def _object(text: str) -> dict[str, Any]:
    try:
        value = json_module.loads(text)
    except ValueError as error:
        raise DatasetError(f'The inputs are not JSON: {error}. Write {{"name": "value"}}.') from None
    if not isinstance(value, dict):
        raise DatasetError(
            f'The inputs are a JSON {type(value).__name__}. Write one object, {{"name": "value"}}; '
            "for many rows use --file."
        )
    return value


def _usage(expected: tuple[str, ...]) -> str:
    options = " ".join(f'--{name.replace("_", "-")} "…"' for name in expected)
    return f"Give {options}, or the same as --input NAME=VALUE, as --json or on stdin."


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)
