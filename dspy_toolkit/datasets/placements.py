"""The split of every row that was ever placed: an append-only file, so that an old row never moves.

One JSON object a line: `{"row", "group", "split", "text", "keys"}`. A row that has left the data stays here, with its
text: a near-duplicate of it (the same row with a typo mended) must not change splits, since an earlier program may have
been trained on it. The file therefore holds the inputs of the rows in clear; keep it as private as the data.

A batch is written whole or not at all, and the file before the last batch is kept beside it as `NAME.backup`.
`locked` keeps a second process of the same home from placing rows between reading and writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError, with_config

from dspy_toolkit.datasets.spec import SplitName
from dspy_toolkit.durable import append_lines, write_file
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.locks import held
from dspy_toolkit.store import canonical_json

LOCK_SECONDS = 600


@with_config(extra="forbid")
@dataclass(frozen=True, slots=True)  # not a pydantic model, which takes ten times the memory: there are as many as rows
class Placement:
    """The split of a row, for good."""

    row: str
    """The row's content hash."""
    group: str
    """The content hash of the row that founded its group."""
    split: SplitName
    text: str
    """The inputs, as `neighbors.comparable` gives them."""
    keys: tuple[str, ...] = ()
    """Values of the dataset's group column, sorted."""


@cache
def _validator() -> TypeAdapter[Placement]:
    return TypeAdapter(Placement)


def locked(path: Path | None) -> AbstractContextManager[None]:
    """Hold the file's lock.

    Raises:
        StoreError: the folder cannot be written, or another process keeps the lock for 10 minutes.
    """
    return nullcontext() if path is None else held(Path(f"{path}.lock"), LOCK_SECONDS)


def recall(path: Path | None) -> list[Placement]:
    """All placements, in the order in which they were made; none when there is no file yet.

    Raises:
        DatasetError: a line cannot be read.
    """
    if path is None or not path.exists():
        return []
    placements = []
    validate = _validator().validate_json
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            placements.append(validate(line))
        except ValidationError:  # also for what is not JSON, or not UTF-8
            raise _damaged(path, number) from None
    return placements


def remember(path: Path | None, placements: Iterable[Placement]) -> None:
    """Append `placements`, all or none. Call it inside `locked`, after what they describe was saved.

    Raises:
        StoreError: the file cannot be written; it is then as it was.
    """
    names = [field.name for field in fields(Placement)]
    lines = b"".join(canonical_json({name: getattr(entry, name) for name in names}) + b"\n" for entry in placements)
    if path is None or not lines:
        return
    if path.exists():
        write_file(_backup(path), path.read_bytes())
    append_lines(path, lines)


def _backup(path: Path) -> Path:
    return path.with_name(f"{path.name}.backup")


def _damaged(path: Path, number: int) -> DatasetError:
    backup = _backup(path)
    advice = (
        f"Put {backup} in its place: it lacks the rows that were placed last, which find their splits again."
        if backup.exists()
        else "Restore the file from a backup. Delete it only together with every program trained on this dataset."
    )
    return DatasetError(f"{path}, line {number} cannot be read, so old rows could change their split. {advice}")
