"""A program's answers to inputs: fitting them to its types, running it on one or on many at once, in order.

Not covered: keeping the answers (`writing`), and inputs as a terminal gives them (`dspy_toolkit.cli.predict`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DatasetError, EngineError

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.registry.programs import LoadedProgram

SEEN = 200
"""Characters of an unparsable reply that its error shows."""


class Unreadable(EngineError):
    """The model's reply does not hold the program's outputs."""


def fit(name: str, value: Any, annotation: Any) -> Any:
    """Convert a value to the type of its field; text is also read as JSON, for numbers and lists.

    Args:
        name: the field's, for an error.
        value: what was given.
        annotation: the field's type.

    Returns:
        The value as that type.

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


def input_types(loaded: LoadedProgram) -> dict[str, Any]:
    """What a program is given.

    Args:
        loaded: the program, and the project that names its inputs.

    Returns:
        The type of each input, in the project's order; Any for one that no signature has.
    """
    from dspy_toolkit.project.signatures import fields_of

    fields = fields_of(loaded.program)
    return {name: fields.get(name, Any) for name in loaded.project.dataset.inputs}


def read_file(path: Path, loaded: LoadedProgram) -> list[dict[str, Any]]:
    """Read every row of a file as inputs of the program; other columns are left out.

    Args:
        path: .jsonl, .csv or .parquet.
        loaded: the program, and the project that names its inputs.

    Returns:
        The inputs of each row, in the file's order.

    Raises:
        DatasetError: the file cannot be read, lacks a column, or has values that do not fit (all of them listed).
    """
    from dspy_toolkit.datasets import DatasetSpec, check_rows, examples, read_rows

    types = input_types(loaded)
    spec = DatasetSpec(source=str(path), inputs=loaded.project.dataset.inputs)
    frame, problems = check_rows(read_rows(path), spec, types, drop_bad_rows=True)
    if problems:
        raise DatasetError("\n".join([*problems, "Correct them and run again."]))
    return [dict(example.inputs()) for example in examples(frame, spec, types)]


def answer(loaded: LoadedProgram, inputs: dict[str, Any], connection: Connection) -> dict[str, Any]:
    """Run the program on one row.

    Args:
        loaded: the program.
        inputs: its inputs, as the types of its fields.
        connection: the models.

    Returns:
        The outputs as plain JSON values; with `abstained`, where its project asks for that.

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


def answers(
    loaded: LoadedProgram, rows: list[dict[str, Any]], connection: Connection, threads: int
) -> Iterator[dict[str, Any] | Unreadable]:
    """Run the program on many rows at once.

    Args:
        loaded: the program.
        rows: its inputs, as the types of its fields.
        connection: the models.
        threads: rows that are under way at once.

    Yields:
        The answer to each row, in their order; a reply that cannot be read is given and not raised.

    Raises:
        ToolkitError: the model failed (somewhere in the exception's chain).
    """

    def one(inputs: dict[str, Any]) -> dict[str, Any] | Unreadable:
        try:
            return answer(loaded, inputs, connection)
        except Unreadable as error:
            return error

    pool = ThreadPoolExecutor(max(1, min(threads, len(rows))), thread_name_prefix="predict")
    try:
        yield from pool.map(one, rows)
    finally:
        # Not waiting: after Ctrl-C or a closed pipe the calls still running are not needed.
        pool.shutdown(wait=False, cancel_futures=True)
