"""The rows of a project as a person looks at them: what is wrong with them, in which split they are, what they say.

Sealed rows are counted and not shown, unless the settings show them: what is changed after reading one was tuned on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import SPLITS, DatasetReport, SplitName, SplitRows, examples, read_file
from dspy_toolkit.datasets.spec import ROW
from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import look_at_rows, prepare
from dspy_toolkit.project import data_part
from dspy_toolkit.store import Frozen, canonical_json

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

HASH_DIGITS = 6
"""The fewest by which a row is found."""


class DataCheck(Frozen):
    """What was found in a file of rows."""

    project: str
    file: str
    new: int
    """Rows that were not placed before; the next run places them."""
    report: DatasetReport


class RowShown(Frozen):
    """One row."""

    number: int
    """In the file."""
    row: str
    """The hash of its content."""
    split: SplitName
    inputs: dict[str, Any]
    outputs: dict[str, Any]


def check_data(settings: Settings, location: str, file: Path | None = None) -> DataCheck:
    """Check the rows of a project against its signature, and say which split each would get. Nothing is written.

    Args:
        settings: the home, whose earlier rows keep their splits.
        location: a project's name or file.
        file: a file in place of the project's, such as the one that is to replace it.

    Returns:
        The findings. Rows that do not fit are listed in `report.bad_rows`, whatever the settings do with such rows.

    Raises:
        DatasetError: the file or a column is missing, no row fits, or the rows cannot fill three splits.
        ProjectError: the project cannot be loaded.
    """
    context = Context.open(location, settings)
    found = look_at_rows(context, file, drop_bad_rows=True)
    path = file or context.project.data_path
    return DataCheck(project=context.project.name, file=str(path), new=len(found.placed), report=found.report)


def split_data(settings: Settings, location: str) -> DatasetReport:
    """Give every row of a project its split, for good, as its first run does.

    Raises:
        DatasetError: as `check_data`; or rows do not fit, and the settings do not drop them.
        ProjectError: the project cannot be loaded.
        StoreError: the home cannot be written.
    """
    context = Context.open(location, settings)
    content = read_file(context.project.data_path)
    dataset = prepare(context, data_part(context.project, context.settings, content))
    return DatasetReport.model_validate(context.store.read_json(dataset.report))


def write_splits(settings: Settings, location: str, folder: Path) -> dict[str, int]:
    """Write train.jsonl and val.jsonl, of the inputs and outputs of the rows, for another tool.

    sealed.jsonl is written only where the settings show sealed rows (`observe.show_sealed_rows`).

    Args:
        settings: the home.
        location: a project's name or file.
        folder: made where it is missing.

    Returns:
        File name → rows.

    Raises:
        DatasetError: one of the files is there already, or as `split_data`.
        ProjectError: the project cannot be loaded.
    """
    context = Context.open(location, settings)
    found = look_at_rows(context)
    wanted: list[SplitName] = [split for split in SPLITS if _may_show(context, split)]
    if there := [name for split in wanted if (folder / (name := f"{split}.jsonl")).exists()]:
        raise DatasetError(f"{folder} has {' and '.join(there)} already. Name another folder.")
    written: dict[str, int] = {}
    for split in wanted:
        rows = [{**row.inputs, **row.outputs} for row in _shown(context, found, split)]
        write_file(folder / f"{split}.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows), DatasetError)
        written[f"{split}.jsonl"] = len(rows)
    return written


def show_rows(settings: Settings, location: str, split: SplitName | None = None) -> list[RowShown]:
    """The rows of a project with their splits, as the file has them. Nothing is written.

    Args:
        settings: the home.
        location: a project's name or file.
        split: only this one's rows; by default those of all splits that may be shown.

    Raises:
        DatasetError: the rows do not fit, or sealed ones are asked for and the settings do not show them.
        ProjectError: the project cannot be loaded.
    """
    context = Context.open(location, settings)
    found = look_at_rows(context)
    if split is not None:
        _refuse_sealed(context, split, "The sealed rows are not shown")
    wanted: list[SplitName] = [each for each in SPLITS if _may_show(context, each) and split in (None, each)]
    return sorted((row for each in wanted for row in _shown(context, found, each)), key=lambda row: row.number)


def show_row(settings: Settings, location: str, row: str) -> RowShown:
    """One row of a project.

    Args:
        settings: the home.
        location: a project's name or file.
        row: a number in the file, or the beginning of a row's hash, six digits of it or more.

    Raises:
        DatasetError: as `find_row`.
        ProjectError: the project cannot be loaded.
    """
    context = Context.open(location, settings)
    found = look_at_rows(context)
    return next(_rows_at(context, found, [find_row(context, found, row)]))


def find_row(context: Context, found: SplitRows, row: str) -> int:
    """The place of a row in the table of `found`.

    Args:
        row: a number in the file, or the beginning of a row's hash, six digits of it or more.

    Raises:
        DatasetError: there is no such row, it is in no split, or it is sealed and the settings show no sealed rows.
    """
    name = context.project.data_path.name
    number = int(row) if row.isascii() and row.isdigit() else None
    if number in found.numbers:
        at = found.numbers.index(number)
    elif number in found.left_out:
        raise DatasetError(
            f"Row {row} of {name} is in no split: it is a copy of another row, does not fit, or belongs to two splits. "
            "`dspy-toolkit data check` says which."
        )
    else:
        hashes = found.table[ROW].tolist()
        places = [place for place, each in enumerate(hashes) if len(row) >= HASH_DIGITS and each.startswith(row)]
        if not places:
            raise DatasetError(
                f"{name} has no row {row!r}. Give a number from {min(found.numbers)} to {max(found.numbers)}, or at least "
                f"{HASH_DIGITS} digits of a row's hash."
            )
        at = places[0]
    _refuse_sealed(context, found.splits[at], f"Row {row} is sealed")
    return at


def _may_show(context: Context, split: SplitName) -> bool:
    return split != "sealed" or context.settings.observe.show_sealed_rows


def _refuse_sealed(context: Context, split: SplitName, said: str) -> None:
    if not _may_show(context, split):
        raise DatasetError(
            f"{said}: what is changed after a sealed row was read has been tuned on it. Take rows of train or val, or set "
            "DSPY_TOOLKIT_OBSERVE__SHOW_SEALED_ROWS=true."
        )


def _shown(context: Context, found: SplitRows, split: SplitName) -> Iterator[RowShown]:
    return _rows_at(context, found, [at for at, each in enumerate(found.splits) if each == split])


def _rows_at(context: Context, found: SplitRows, places: list[int]) -> Iterator[RowShown]:
    spec = context.project.dataset
    cases = examples(found.table.iloc[places], spec)
    for at, case in zip(places, cases, strict=True):
        yield RowShown(
            number=found.numbers[at],
            row=str(found.table[ROW].iloc[at]),
            split=found.splits[at],
            inputs={name: case[name] for name in spec.inputs},
            outputs={name: case[name] for name in spec.outputs},
        )
