"""A table of rows → each row in one of train, val and sealed, and a report.

    check → drop exact duplicates → group and split → cover every class

The rows are in the order of their hashes, so the same rows give the same table, whatever their order in the file.

With the placements of earlier rows, an old row keeps its split whatever is added, removed or corrected around it; new
fractions or another seed then concern new rows only. Without them, a row's split still comes from hashes, but a row added
later may move an older near-duplicate of it by founding their group, or a row of a class that has very few.

Nothing here is written: see `preparing`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.datasets.checking import check_rows, choices_of, row_numbers
from dspy_toolkit.datasets.fractions import default_fractions
from dspy_toolkit.datasets.placements import Placement
from dspy_toolkit.datasets.spec import GROUP, ROW, SPLITS, DatasetReport, DatasetSpec, Lengths, SplitName
from dspy_toolkit.datasets.table import as_text, row_hash, table_of
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    import pandas as pd

SHOWN_GROUPS = 20


class _Distinct(NamedTuple):
    """A row's content, and what is known of its copies in the file. Plain tuples: there are as many as rows."""

    values: tuple[Any, ...]
    """Of `spec.columns`."""
    number: int
    """The first copy's."""
    keys: tuple[str, ...]
    """Of all copies, sorted."""
    stratum: str


class SplitRows(NamedTuple):
    """Rows that each have a split, in the order of their hashes."""

    table: pd.DataFrame
    """The inputs, the outputs, `_row` and `_group`."""
    splits: tuple[SplitName, ...]
    """Of each row of `table`."""
    numbers: tuple[int, ...]
    """Of each row of `table`, in the file."""
    left_out: tuple[int, ...]
    """The numbers of the rows that are in no split: copies, rows that do not fit, and those that were set aside."""
    report: DatasetReport
    placed: tuple[Placement, ...]
    """Of the rows that were not placed before."""


def split_rows(
    frame: pd.DataFrame,
    spec: DatasetSpec,
    fields: dict[str, Any],
    old: Sequence[Placement] = (),
    *,
    drop_bad_rows: bool = False,
    near_duplicate: float = 0.8,
    origin: str = "",
) -> SplitRows:
    """Check, group and split `frame`. Nothing is written.

    Args:
        frame: from `read_rows`, or any table.
        fields: column → type annotation, as `signatures.fields_of` gives them.
        old: rows that were placed before.
        drop_bad_rows: leave out rows that do not fit, instead of refusing them all.
        near_duplicate: Jaccard similarity of the inputs' character 5-grams that makes two rows one group, in (0, 1].
        origin: the data's name in messages; `spec.source` when not given.

    Raises:
        DatasetError: a column is unknown, rows are bad, or there are too few rows, groups or rows of a class to fill
            three splits.
    """
    from dspy_toolkit.datasets.grouping import Row, cover_classes, place
    from dspy_toolkit.datasets.neighbors import comparable

    if not 0 < near_duplicate <= 1:
        raise DatasetError(f"near_duplicate is {near_duplicate:g}, outside (0, 1]. Set it to 0.8, or near that.")
    origin = origin or spec.source
    checked, bad_rows = check_rows(frame, spec, fields, drop_bad_rows, origin=origin)
    stratify = _stratum(spec, fields)
    rows = _distinct(checked, spec, stratify)
    if len(rows) < len(SPLITS):
        raise DatasetError(
            f"{origin} has {_rows(len(rows))} that differ, fewer than the splits train, val and sealed. Add rows."
        )
    # A row's hash covers its inputs, so one that is remembered has the text that it had.
    texts = {entry.row: entry.text for entry in old}
    inputs = len(spec.inputs)
    candidates = [
        Row(row, texts[row] if row in texts else comparable(map(as_text, entry.values[:inputs])), entry.keys)
        for row, entry in (rows.items() if rows.keys() - texts.keys() else ())  # else there is nothing to place
    ]
    placed = place(
        candidates,
        old,
        seed=spec.seed,
        fractions=spec.fractions or default_fractions(len(rows)),
        threshold=near_duplicate,
    )
    known = [*old, *placed.placements]
    present = [entry for entry in known if entry.row in rows]
    strata = {row: entry.stratum for row, entry in rows.items()}
    moves = cover_classes(present, strata, placed.founded, spec.seed)
    present = _moved(present, moves)
    _check_cover(present, strata, stratify, origin)
    present.sort(key=lambda entry: entry.row)

    report = _report(present, rows, spec, stratify, origin).model_copy(
        update={
            "rows": len(frame),
            "bad_rows": tuple(bad_rows),
            "duplicates": len(checked) - len(rows),
            "set_aside": _set_aside(placed.aside, _moved(known, moves), rows, origin),
        }
    )
    # One table: a column's type comes from all rows, so the tables of the three splits have the same types.
    table = table_of(
        {
            **{name: [rows[entry.row].values[i] for entry in present] for i, name in enumerate(spec.columns)},
            ROW: [entry.row for entry in present],
            GROUP: [entry.group for entry in present],
        }
    )
    numbers = tuple(rows[entry.row].number for entry in present)
    return SplitRows(
        table=table,
        splits=tuple(entry.split for entry in present),
        numbers=numbers,
        left_out=tuple(sorted(set(row_numbers(frame)).difference(numbers))),
        report=report,
        placed=tuple(_moved(placed.placements, moves)),
    )


def _stratum(spec: DatasetSpec, fields: Mapping[str, Any]) -> str | None:
    """The column to stratify by: the given one, else the only output if its type is a choice."""
    if spec.stratify is not None or len(spec.outputs) != 1:
        return spec.stratify
    return spec.outputs[0] if choices_of(fields.get(spec.outputs[0], Any)) is not None else None


def _distinct(checked: pd.DataFrame, spec: DatasetSpec, stratify: str | None) -> dict[str, _Distinct]:
    """Row hash → content; rows with the same content become one, which keeps the group keys of all."""

    def column(name: str | None) -> list[Any]:
        return checked[name].tolist() if name else [None] * len(checked)

    rows: dict[str, _Distinct] = {}
    contents = zip(*map(column, spec.columns), strict=True)
    labels, owners = column(stratify), column(spec.group)
    for number, values, label, owner in zip(checked.index.tolist(), contents, labels, owners, strict=True):
        stratum = as_text(label) if stratify else ""
        # A row without a value in the group column belongs with no other.
        keys = (as_text(owner),) if owner is not None else ()
        row = row_hash(dict(zip(spec.columns, values, strict=True)))
        if row in rows:
            first = rows[row]
            # The smaller of two, not the earlier: the order of the file must not matter.
            rows[row] = _Distinct(
                values, min(number, first.number), tuple(sorted({*keys, *first.keys})), min(stratum, first.stratum)
            )
        else:
            rows[row] = _Distinct(values, number, keys, stratum)
    return rows


def _moved(entries: list[Placement], moves: Mapping[str, SplitName]) -> list[Placement]:
    return [replace(entry, split=moves[entry.group]) if moves and entry.group in moves else entry for entry in entries]


def _check_cover(present: list[Placement], strata: Mapping[str, str], stratify: str | None, origin: str) -> None:
    """Raise DatasetError, one line a class, when a class is not in every split."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for entry in present:
        counts[strata[entry.row]][entry.split] += 1
        groups[strata[entry.row]].add(entry.group)
    lines = []
    for name in sorted(set(strata.values())):  # also a class whose rows were all set aside
        count = counts[name]
        if len(count) == len(SPLITS):
            continue
        what = f'class "{name}" of {stratify} has' if stratify else "there are"
        number = len(groups[name])
        together = f" in {number} group{'s' if number > 1 else ''}" if number < count.total() else ""
        spread = ", ".join(f"{count[split]} in {split}" for split in SPLITS)
        lines.append(f"{origin}: {what} {_rows(count.total())}{together}: {spread}.")
    if lines:
        advice = "Add rows of it, or merge it with another class" if stratify else "Add rows that differ more"
        lines.append(f"Every split needs one, and near-duplicates are one group, which shares a split. {advice}.")
        raise DatasetError("\n".join(lines))


def _set_aside(
    aside: Mapping[str, tuple[str, ...]], known: list[Placement], rows: Mapping[str, _Distinct], origin: str
) -> tuple[str, ...]:
    split_of = {entry.group: entry.split for entry in known}
    found = []
    for row, groups in aside.items():
        splits = sorted({split_of[group] for group in groups}, key=SPLITS.index)
        found.append((rows[row].number, " and ".join(splits)))
    return tuple(
        f"{origin}, row {number}: belongs with rows of {splits}, so it is in no split."
        for number, splits in sorted(found)
    )


def _report(
    present: list[Placement], rows: Mapping[str, _Distinct], spec: DatasetSpec, stratify: str | None, origin: str
) -> DatasetReport:
    """What the rows that are in a split look like. Nothing here depends on what was remembered before."""
    sizes = Counter(entry.group for entry in present)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for entry in present:
        if sizes[entry.group] > 1:
            groups[entry.group].append(rows[entry.row].number)
    large = sorted(map(sorted, groups.values()), key=lambda numbers: (-len(numbers), numbers))
    contradictions = _same_inputs(rows.values(), len(spec.inputs))

    splits = Counter(entry.split for entry in present)
    classes: dict[str, dict[str, int]] = {}
    if stratify:
        for split in SPLITS:
            counter = Counter(rows[entry.row].stratum for entry in present if entry.split == split)
            classes[split] = dict(sorted(counter.items()))
    lengths = {}
    for place, name in enumerate(spec.inputs):
        long = [len(as_text(rows[entry.row].values[place])) for entry in present]
        lengths[name] = Lengths(min=min(long), median=float(median(long)), max=max(long))
    return DatasetReport(
        rows=len(present),
        contradictions=tuple(
            f"{origin}, rows {', '.join(map(str, numbers))}: the same inputs with different outputs."
            for numbers in contradictions
        ),
        near_duplicates=len(present) - len(sizes),
        near_duplicate_rows=tuple(tuple(numbers) for numbers in large[:SHOWN_GROUPS]),
        splits={split: splits[split] for split in SPLITS},
        groups={split: len({entry.group for entry in present if entry.split == split}) for split in SPLITS},
        classes=classes,
        lengths=lengths,
    )


def _same_inputs(rows: Iterable[_Distinct], inputs: int) -> list[list[int]]:
    """The numbers of distinct rows that have the same inputs, for each such set of rows; all of it ascending."""
    first: dict[tuple[str | bytes, ...], int] = {}
    more: defaultdict[tuple[str | bytes, ...], list[int]] = defaultdict(list)
    for row in rows:
        # As JSON, since a list is no key and 1 is not true; never taken for a text, since it is bytes.
        key = tuple([value if isinstance(value, str) else canonical_json(value) for value in row.values[:inputs]])
        if key in first:
            more[key].append(row.number)
        else:
            first[key] = row.number
    return sorted(sorted([first[key], *numbers]) for key, numbers in more.items())


def _rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"
