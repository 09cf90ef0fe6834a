"""A file of rows as a table of plain Python values.

Covered: .csv (UTF-8, comma, a header; every cell is text, an empty cell is missing), .jsonl (one object a line) and
.parquet. The table's index, named `row`, holds the number that a person would see: the spreadsheet's row for CSV (the
header is row 1), the line for JSONL, the record counted from 1 for Parquet. Blank lines are skipped, and still counted.

Not covered: types. A CSV cell `3` is the text "3" until the signature says that it is a number, so labels such as
`NA`, `null` or `007` arrive as they were written.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dspy_toolkit.errors import DatasetError, nearest

if TYPE_CHECKING:
    import pandas as pd


def read_file(path: Path) -> bytes:
    """The bytes of a .csv, .jsonl or .parquet file.

    Raises:
        DatasetError: the file is missing (the nearest names in its folder are given), of another type, or not readable.
    """
    if not path.is_file():
        _refuse_missing(path)
    if path.suffix.lower() not in READERS:
        kind = path.suffix or "no suffix"
        raise DatasetError(
            f"{path} cannot be read: {kind} is not one of {', '.join(SUFFIXES)}. Save it as one of them."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def read_rows(path: Path, content: bytes | None = None) -> pd.DataFrame:
    """Read a .csv, .jsonl or .parquet file.

    Args:
        content: its bytes, where they were read already: what is parsed is then what was hashed, whoever writes
        meanwhile.

    Returns:
        One column a field, of Python objects (None where missing), in file order; the index `row` holds row numbers.

    Raises:
        DatasetError: as `read_file`; or the file is damaged, or without rows.
    """
    path = Path(path)
    content = read_file(path) if content is None else content
    try:
        frame = READERS[path.suffix.lower()](path, content)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}. Save it as UTF-8."
        ) from None
    if not len(frame):
        raise DatasetError(f"{path} has no rows. Add some under its header, or name another file.")
    return frame


def from_records(records: Iterable[Mapping[str, Any]], numbers: Sequence[int] | None = None) -> pd.DataFrame:
    """A table like `read_rows` gives, of rows that are already in memory.

    Args:
        records: rows; a key that a row lacks is missing there.
        numbers: the number of each row; 1, 2, … when not given.
    """
    records = list(records)
    columns = dict.fromkeys(name for record in records for name in record)
    return _table(
        {name: [record.get(name) for record in records] for name in columns},
        list(numbers) if numbers is not None else range(1, len(records) + 1),
    )


def _table(columns: Mapping[str, list[Any]], numbers: Sequence[int]) -> pd.DataFrame:
    import pandas as pd

    index = pd.Index(numbers, name="row", dtype="int64")
    # dtype=object: pandas would turn whole numbers beside a missing one into floats.
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object, index=index) for name, values in columns.items()}, index=index
    )


def _refuse_missing(path: Path) -> NoReturn:
    if path.is_dir():
        raise DatasetError(f"{path} is a folder. Name a {', '.join(SUFFIXES)} file in it.")
    folder = path.parent
    if not folder.is_dir():
        raise DatasetError(
            f"{path} does not exist, and neither does its folder {folder}. Correct the dataset's source."
        )
    names = (entry.name for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    raise DatasetError(f"{path} does not exist.{nearest(path.name, names)} Correct the dataset's source.")


def _read_csv(path: Path, content: bytes) -> pd.DataFrame:
    import pandas as pd

    as_text: dict[str, Any] = {
        "dtype": object,  # the cells as they stand: `str` would put them into an Arrow array first
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "skip_blank_lines": False,
    }
    try:
        frame = pd.read_csv(io.BytesIO(content), **as_text)
        # Of two columns with one name pandas gives the second another one.
        _refuse_repeated(path, pd.read_csv(io.BytesIO(content), header=None, nrows=1, **as_text).iloc[0])
    except pd.errors.EmptyDataError:
        return _table({}, [])
    except pd.errors.ParserError as error:
        raise DatasetError(
            f"{path} is not a well-formed CSV: {str(error).strip()}. Quote cells that contain commas or line breaks."
        ) from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the cells beyond the header for an index
        raise DatasetError(
            f"{path}, row 2 has more cells than the header. Quote cells that contain commas, or name every column."
        )
    # A row that is shorter than the header is padded with NaN.
    columns = {
        str(name): [value if isinstance(value, str) and value != "" else None for value in frame[name].tolist()]
        for name in frame.columns
    }
    rows = zip(*columns.values(), strict=True)
    filled = [place for place, cells in enumerate(rows) if any(value is not None for value in cells)]
    if len(filled) < len(frame):
        columns = {name: [values[place] for place in filled] for name, values in columns.items()}
    return _table(columns, [place + 2 for place in filled])


def _read_jsonl(path: Path, content: bytes) -> pd.DataFrame:
    numbers, records, problems = [], [], []
    # Split at \n only: str.splitlines also splits at U+2028, which JSON allows inside a string.
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_without_repeated)
        except ValueError as error:  # JSONDecodeError is one; so is a number of more digits than Python reads
            problems.append(f"{path}, row {number}: not JSON: {error}.")
            continue
        except RecursionError:
            problems.append(f"{path}, row {number}: nested deeper than can be read.")
            continue
        if not isinstance(record, dict):
            problems.append(f"{path}, row {number}: a {type(record).__name__}, where an object is expected.")
            continue
        numbers.append(number)
        records.append(record)
    if problems:
        raise DatasetError("\n".join([*problems, 'Write one object a line, such as {"text": "…", "label": "…"}.']))
    return from_records(records, numbers)


def _read_parquet(path: Path, content: bytes) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _refuse_repeated(path, file.schema_arrow.names)
        table = file.read()
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:  # the last for a time that Python has no value for
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise DatasetError(f"{path} is not a whole Parquet file: {reason}. Write it again.") from None
    return _table(columns, range(1, table.num_rows + 1))


def _refuse_repeated(path: Path, names: Iterable[str]) -> None:
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise DatasetError(f"{path} has more than one column {', '.join(repeated)}. Rename or remove all but one.")


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):  # JSON allows it, and the last one would count
        repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise ValueError(f"the key {', '.join(repeated)} stands in it more than once")
    return record


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
SUFFIXES = tuple(READERS)
