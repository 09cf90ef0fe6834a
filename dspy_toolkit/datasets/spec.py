"""The values of this package: the specification of a dataset, the prepared dataset, and the report about its rows.

Not covered: whether the columns exist or the rows fit. Those need the file, and are checked in `checking`.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from dspy_toolkit.store import Frozen, Ref

SplitName = Literal["train", "val", "sealed"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

ROW = "_row"
GROUP = "_group"


class Fractions(Frozen):
    """The expected share of the groups that each split gets; they sum to 1."""

    train: float = Field(default=0.4, gt=0, lt=1)
    val: float = Field(default=0.27, gt=0, lt=1)
    sealed: float = Field(default=0.33, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.val + self.sealed
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and sealed must sum to 1, but sum to {total:g}")
        return self


class DatasetSpec(Frozen):
    """Which columns of which file are the data, and how they are split."""

    source: str
    """A .csv, .jsonl or .parquet file."""
    inputs: tuple[str, ...] = Field(min_length=1)
    """The columns that the program is given."""
    outputs: tuple[str, ...] = ()
    """The columns that the metric compares with; none for a metric that needs no label."""
    fractions: Fractions | None = None
    """By default they follow from the number of rows; see `fractions`."""
    stratify: str | None = None
    """A column whose every value must occur in every split. By default the only output, if its type is a choice."""
    group: str | None = None
    """A column: rows that share its value share a split."""
    seed: int = 0
    """Another seed draws another split, for rows that were not placed before."""

    @model_validator(mode="after")
    def _distinct_columns(self) -> Self:
        columns = (*self.inputs, *self.outputs)
        if repeated := sorted({column for column in columns if columns.count(column) > 1}):
            raise ValueError(f"inputs and outputs name {', '.join(repeated)} more than once")
        if reserved := sorted({ROW, GROUP} & set(columns)):
            raise ValueError(f"inputs and outputs cannot be called {' or '.join(reserved)}: rename the column")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)


class Dataset(Frozen):
    """A prepared dataset: three tables and a report in the store. Compiling is given the first two tables only."""

    train: Ref
    val: Ref
    sealed: Ref
    report: Ref
    """A `DatasetReport`, as JSON."""


class Lengths(Frozen):
    """Characters of one input, over all rows that are in a split."""

    min: int
    median: float
    max: int


class DatasetReport(Frozen):
    """What was found in the rows. The lists name rows by the numbers that a person sees in the file."""

    rows: int
    """In the file, blank lines not counted."""
    bad_rows: tuple[str, ...] = ()
    """One line for each value of a dropped row that does not fit its type."""
    duplicates: int = 0
    """Rows left out because another has the same inputs and outputs."""
    contradictions: tuple[str, ...] = ()
    """One line for each set of rows with the same inputs and different outputs; all of them are kept, in one split."""
    near_duplicates: int = 0
    """Rows that are not the first of their group (near-duplicates, or rows that share the value of `spec.group`)."""
    near_duplicate_rows: tuple[tuple[int, ...], ...] = ()
    """Row numbers of the groups with more than one row; the largest 20 groups."""
    set_aside: tuple[str, ...] = ()
    """One line for each row that belongs to two splits at once, and is therefore in none."""
    splits: dict[str, int]
    """Rows of each split."""
    groups: dict[str, int]
    """Groups of each split."""
    classes: dict[str, dict[str, int]]
    """Split → class → rows; empty when nothing is stratified."""
    lengths: dict[str, Lengths]
    """Input → characters."""
