"""A row's values ↔ the columns of a stored table; a stored table → DSPy examples.

A column whose values are all texts, whole numbers, numbers or booleans (or missing) is stored as such, with pandas'
types that know "missing". Any other column (lists, models, a mixture) is stored as JSON text, and named in the table's
`attrs["json"]`, which Parquet keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets.spec import DatasetSpec
from dspy_toolkit.errors import DatasetError, nearest
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    import dspy
    import pandas as pd

INT64 = range(-(2**63), 2**63)


def row_hash(values: Mapping[str, Any]) -> str:
    """16 hex digits that name a row: sha256 of its inputs and outputs, column → plain JSON value, as canonical JSON."""
    return hashlib.sha256(canonical_json(dict(values))).hexdigest()[:16]


def as_text(value: Any) -> str:
    """A plain JSON value as a person would read it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else canonical_json(value).decode()


def table_of(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """A table that can be stored, of plain JSON values. Equal values give equal Parquet bytes."""
    import pandas as pd

    encoded: dict[str, pd.Series] = {}
    as_json: list[str] = []
    for name, values in columns.items():
        if kind := _kind(values):
            encoded[name] = pd.Series(list(values), dtype=kind)
        else:
            as_json.append(name)
            encoded[name] = pd.Series([canonical_json(value).decode() for value in values], dtype="str")
    frame = pd.DataFrame(encoded)
    frame.attrs["json"] = as_json
    return frame


def examples(frame: pd.DataFrame, spec: DatasetSpec, fields: Mapping[str, Any] | None = None) -> list[dspy.Example]:
    """A stored table as DSPy examples that hold inputs and outputs only, with `spec.inputs` marked as inputs.

    Args:
        frame: a split's table, or some of its rows.
        fields: column → type annotation. With it, enums and pydantic models come back as such; without it, as their
            plain JSON values.

    Raises:
        DatasetError: a column is not there, or a value does not fit its type.
    """
    import dspy
    from pydantic import ValidationError

    from dspy_toolkit.datasets.checking import validator_of

    columns: dict[str, list[Any]] = {}
    for name in spec.columns:
        if name not in frame.columns:
            known = nearest(name, [str(column) for column in frame.columns])
            raise DatasetError(f'The table has no column "{name}".{known} Prepare the dataset again.')
        values = [_unboxed(value) for value in frame[name].tolist()]
        if name in frame.attrs.get("json", ()):
            values = [json.loads(value) for value in values]
        if fields is not None and name in fields:
            validator = validator_of(fields[name], name)
            try:
                values = [validator.validate_python(value) for value in values]
            except ValidationError as error:
                why = error.errors(include_url=False)[0]
                raise DatasetError(
                    f'Column "{name}" of the table holds {why["input"]!r}: {why["msg"]}. Prepare the dataset again.'
                ) from None
        columns[name] = values
    rows = zip(*columns.values(), strict=True)
    return [dspy.Example(**dict(zip(columns, row, strict=True))).with_inputs(*spec.inputs) for row in rows]


def _kind(values: Sequence[Any]) -> str | None:
    """The pandas type that holds `values` exactly; None when there is none."""
    types = {type(value) for value in values if value is not None}
    if types == {str}:
        return "str"
    if types == {bool}:
        return "boolean"
    if types == {int} and all(value is None or value in INT64 for value in values):
        return "Int64"
    return "Float64" if types == {float} else None


def _unboxed(value: Any) -> Any:
    import pandas as pd

    return None if value is None or value is pd.NA or (isinstance(value, float) and value != value) else value
