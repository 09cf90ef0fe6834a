"""`dspy-toolkit predict`: run a program on one input, or on a file of them.

Inputs come from options (`--request "…"`, or `--input request=…` for a field named like an option), from `--row`, from
JSON on stdin, or from a file of rows. With a file there is one line of JSON for each row, in the file's order, as soon
as it is known; a row whose reply could not be parsed has its line too, `{"error": …}`, and the exit code is then 1.

Not covered: scoring the answers.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import DatasetError, EngineError, nearest
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.registry.programs import LoadedProgram

SEEN = 200
"""Characters of an unparsable reply that its error shows."""


class Unreadable(EngineError):
    """The model's reply does not hold the program's outputs."""


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
        from dspy_toolkit.cli.predict_file import write_answers

        threads, bar = settings.optimize.threads, settings.observe.progress

        def ask(left: list[dict[str, Any]]) -> Iterator[dict[str, Any] | EngineError]:
            return answers(loaded, left, connection, threads)

        unreadable = write_answers(loaded, rows, connection.model, ask, to, threads=threads, progress=bar)
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
    answer = run(loaded, rows[0], connection)
    if json:
        print(json_text(answer))
    else:
        from dspy_toolkit.display.tables import console, properties

        console().print(properties([(name, _shown(value)) for name, value in answer.items()]))


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
    types = _types(loaded)
    return {name: fit(name, given[name], types[name]) for name in expected}


def read_file(path: Path, loaded: LoadedProgram) -> list[dict[str, Any]]:
    """Every row of a file as inputs of the program; other columns are left out.

    Raises:
        DatasetError: the file cannot be read, lacks a column, or has values that do not fit (all of them listed).
    """
    from dspy_toolkit.datasets import DatasetSpec, check_rows, examples, read_rows

    types = _types(loaded)
    spec = DatasetSpec(source=str(path), inputs=loaded.project.dataset.inputs)
    frame, problems = check_rows(read_rows(path), spec, types, drop_bad_rows=True)
    if problems:
        raise DatasetError("\n".join([*problems, "Correct them and run again."]))
    return [dict(example.inputs()) for example in examples(frame, spec, types)]


def run(loaded: LoadedProgram, inputs: dict[str, Any], connection: Connection) -> dict[str, Any]:
    """The program's answer to `inputs`, as plain JSON values; with `abstained`, where its project asks for that.

    Raises:
        Unreadable: the reply could not be parsed.
        ToolkitError: the model failed (somewhere in the exception's chain).
    """
    import dspy
    from dspy.utils.exceptions import AdapterParseError
    from pydantic_core import to_jsonable_python

    from dspy_toolkit.project.abstention import marked

    # A trace of its own: the shared default would hold on to every prediction of every thread.
    with connection.context(), dspy.context(trace=[]):
        try:
            prediction = loaded.program(**inputs)
        except AdapterParseError as error:
            raise Unreadable(
                f"The model's reply does not hold the outputs: {str(error.lm_response)[:SEEN]!r}. "
                "Where it was cut short, raise DSPY_TOOLKIT_LM__MAX_TOKENS."
            ) from error
    return marked(to_jsonable_python(dict(prediction.items()), fallback=str), loaded.project.abstain_below)


def print_rows(loaded: LoadedProgram, rows: list[dict[str, Any]], connection: Connection, threads: int) -> None:
    """Run a program on `rows`, `threads` at once, and print one line of JSON for each, in order.

    Raises:
        Unreadable: after the last line, when some replies could not be read; their lines say so.
    """
    unreadable = 0
    for answer in answers(loaded, rows, connection, threads):
        unreadable += isinstance(answer, Unreadable)
        print(json_text({"error": str(answer)} if isinstance(answer, Unreadable) else answer), flush=True)
    if unreadable:
        raise Unreadable(f"{unreadable} of {len(rows)} replies could not be read; their lines hold an error.")


def answers(
    loaded: LoadedProgram, rows: list[dict[str, Any]], connection: Connection, threads: int
) -> Iterator[dict[str, Any] | Unreadable]:
    """The answer to each row in order, `threads` at once; a reply that cannot be read is given and not raised."""

    def one(inputs: dict[str, Any]) -> dict[str, Any] | Unreadable:
        try:
            return run(loaded, inputs, connection)
        except Unreadable as error:
            return error

    pool = ThreadPoolExecutor(max(1, min(threads, len(rows))), thread_name_prefix="predict")
    try:
        yield from pool.map(one, rows)
    finally:
        # Not waiting: after Ctrl-C or a closed pipe the calls still running are not needed.
        pool.shutdown(wait=False, cancel_futures=True)


def _types(loaded: LoadedProgram) -> dict[str, Any]:
    from dspy_toolkit.project.signatures import fields_of

    fields = fields_of(loaded.program)
    return {name: fields.get(name, Any) for name in loaded.project.dataset.inputs}


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


def fit(name: str, value: Any, annotation: Any) -> Any:
    """`value` as the field's type; text is also read as JSON, for numbers and lists.

    Raises:
        DatasetError: it does not fit.
    """
    from pydantic import ValidationError

    from dspy_toolkit.datasets.checking import validator_of

    validator = validator_of(annotation, name)
    try:
        return validator.validate_python(value)
    except ValidationError as error:
        refused = error
    if isinstance(value, str):
        try:
            return validator.validate_json(value)
        except ValidationError:
            pass  # the first message is the clearer one
    problem = refused.errors(include_url=False, include_context=False)[0]["msg"]
    raise DatasetError(f"The input {name} is {value!r}: {problem}. Correct it.")


def _usage(expected: tuple[str, ...]) -> str:
    options = " ".join(f'--{name.replace("_", "-")} "…"' for name in expected)
    return f"Give {options}, or the same as --input NAME=VALUE, as --json or on stdin."


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)
