"""Every row against the types of the signature.

A value fits a column if pydantic accepts it for the column's annotation: unchanged; or, if it is text, without the
spaces around it or parsed as JSON (a CSV cell `["a", "b"]` for `list[str]`); or, if it is a number, as text. What fits
is kept as plain JSON values: an enum as its value, a model as a dictionary. A missing value (an empty CSV cell, null)
fits only where the annotation allows None.

All bad values of all rows are listed, not only the first.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import to_jsonable_python

from dspy_toolkit.datasets.spec import DatasetSpec
from dspy_toolkit.errors import DatasetError, nearest
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    import pandas as pd

SHOWN_CHOICES = 20
SHOWN_CHARACTERS = 60


def check_rows(
    frame: pd.DataFrame, spec: DatasetSpec, fields: dict[str, Any], drop_bad_rows: bool, *, origin: str = ""
) -> tuple[pd.DataFrame, list[str]]:
    """Check every row, and return the rows that fit.

    Args:
        frame: from `read_rows`, or any table; row numbers are its index if that is named `row`, else 1, 2, …
        fields: column → type annotation. A column without one may hold any JSON value, or nothing.
        drop_bad_rows: leave bad rows out, instead of refusing the table.
        origin: the table's name in messages; `spec.source` when not given.

    Returns:
        The rows that fit (columns: inputs, outputs, then `spec.group` and `spec.stratify`; values are plain JSON;
        index `row`), and one line for each bad value.

    Raises:
        DatasetError: a column is unknown, no row is left, or rows are bad and not to be dropped (all of them listed).
    """
    import pandas as pd

    origin = origin or spec.source
    extra = [column for column in (spec.group, spec.stratify) if column is not None and column not in spec.columns]
    columns = list(dict.fromkeys([*spec.columns, *extra]))
    known = [str(column) for column in frame.columns]
    for column in columns:
        if column not in known:
            raise DatasetError(
                f'{origin} has no column "{column}".{nearest(column, known)} Correct the dataset or the file.'
            )
    if frame.empty:
        raise DatasetError(f"{origin} has no rows. Add some, or name another file.")

    numbers = row_numbers(frame)
    found: list[tuple[int, str]] = []
    checked: dict[str, list[Any]] = {}
    for column in columns:
        values = [value if type(value) is str else _plain(value) for value in frame[column].tolist()]
        validator = validator_of(fields.get(column, Any), column) if column in spec.columns else None
        fitted = _fit_all(values, validator) if validator else None
        if fitted is None:
            fitted = values
            for position, value in enumerate(values):
                try:
                    fitted[position] = _fit(value, validator) if validator else _as_json(value)
                except ValueError as error:  # pydantic's ValidationError is one
                    why = _explain(column, value, fields.get(column, Any), error)
                    found.append((position, f"{origin}, row {numbers[position]}: {why}."))
        checked[column] = fitted
    # By row, then by column: the order in which somebody corrects a file. The sort is stable.
    problems = [line for _, line in sorted(found, key=lambda entry: entry[0])]
    bad = {position for position, _ in found}
    if problems and not drop_bad_rows:
        raise DatasetError(
            "\n".join(
                [
                    *problems,
                    f"Fix {'the row' if len(bad) == 1 else f'these {len(bad)} rows'}, or set DSPY_TOOLKIT_DATA__DROP_BAD_ROWS=true.",
                ]
            )
        )
    if len(bad) == len(frame):
        raise DatasetError("\n".join([*problems, f"{origin} has no row that fits the signature. Fix the rows."]))

    kept = [position for position in range(len(frame)) if position not in bad]
    index = pd.Index([numbers[position] for position in kept], name="row", dtype="int64")
    table = {
        name: pd.Series([values[position] for position in kept], dtype=object, index=index)
        for name, values in checked.items()
    }
    return pd.DataFrame(table, index=index), problems


def row_numbers(frame: pd.DataFrame) -> list[int]:
    """The number of each row: the table's index if that is named `row`, else counted from 1."""
    return frame.index.tolist() if frame.index.name == "row" else list(range(1, len(frame) + 1))


def choices_of(annotation: Any) -> tuple[Any, ...] | None:
    """The plain values that a Literal, an enum or bool allows; None for any other annotation."""
    annotation = _without_none(annotation)
    if get_origin(annotation) is Literal:
        return tuple(choice.value if isinstance(choice, Enum) else choice for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(member.value for member in annotation)
    return (False, True) if annotation is bool else None


def validator_of(annotation: Any, column: str) -> TypeAdapter[Any]:
    """A pydantic validator of `annotation`. Raises DatasetError for a type that no file can hold."""
    try:
        try:
            return TypeAdapter(annotation, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))
        except PydanticSchemaGenerationError:
            raise
        except PydanticUserError:  # a model has a configuration of its own, and takes no other
            return TypeAdapter(annotation)
    except PydanticSchemaGenerationError:
        raise DatasetError(
            f'Column "{column}" has the type {_name(annotation)}, which cannot be read from a file. '
            "Use str, bool, int, float, Literal, an enum, a list or a pydantic model in the signature."
        ) from None


def _fit_all(values: list[Any], validator: TypeAdapter[Any]) -> list[Any] | None:
    """All of `values` as plain JSON values, where each fits as it stands; None where one does not: ask `_fit` of each."""
    validate, dump = validator.validator.validate_python, validator.serializer.to_python
    try:
        plain = [dump(validate(value), mode="json") for value in values]
        # Text is the usual case, and encodes without a copy of it as JSON.
        _ = [value.encode() if type(value) is str else canonical_json(value) for value in plain]
    except ValueError:
        return None
    return plain


def _fit(value: Any, validator: TypeAdapter[Any]) -> Any:
    """`value` as a plain JSON value. Raises ValueError when it does not fit, with the reason of the first attempt."""
    errors: list[ValidationError] = []
    for attempt in _attempts(value):
        try:
            fitted = validator.validate_python(attempt)
        except ValidationError as error:
            errors.append(error)
            continue
        plain = validator.dump_python(fitted, mode="json")
        canonical_json(plain)  # a ValueError for NaN, infinity and lone surrogates
        return plain
    raise errors[0]


def _as_json(value: Any) -> Any:
    """Any `value` as a plain JSON value. Raises ValueError for what JSON cannot hold."""
    plain = to_jsonable_python(value, inf_nan_mode="strings")
    canonical_json(plain)
    return plain


def _attempts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, str):
        yield value.strip()
        try:
            yield json.loads(value)
        except ValueError:
            return
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _plain(value: Any) -> Any:
    """None for pandas' kinds of missing, Python values for numpy's."""
    import numpy as np
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return None
    # An array, or a scalar that is not a Python number: pandas keeps both in columns of objects.
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _explain(column: str, value: Any, annotation: Any, error: ValueError) -> str:
    if value is None:
        return f"{column} is missing"
    text = value if isinstance(value, str) else repr(value)
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    # Escapes keep one problem on one line, and a lone surrogate printable.
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)
    seen = f'{column} "{shown}"' if isinstance(value, str) else f"{column} {shown}"
    bare = _without_none(annotation)
    if bare is not bool and (choices := choices_of(annotation)) is not None:
        names = [str(choice) for choice in choices[:SHOWN_CHOICES]]
        more = f", … ({len(choices)} in all)" if len(choices) > SHOWN_CHOICES else ""
        return f"{seen} is not one of {', '.join(names)}{more}"
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number"}
    if isinstance(bare, type) and bare in kinds:
        return f"{seen} is not {kinds[bare]}"
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        return f"{seen} is not {_name(annotation)}: {f'{place}: ' if place else ''}{problem['msg']}"
    return f"{seen} cannot be written as JSON: {error}"


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
