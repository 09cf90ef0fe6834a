"""Reading, checking, splitting and sealing the rows of a project.

reading    a CSV, JSONL or Parquet file → a table that keeps the row numbers a person would see
checking   every row against the signature's types; all the bad rows, with their numbers
grams      the character 5-grams of texts, as numbers
neighbors  which texts are near-duplicates, exactly
fractions  how rows are divided where the dataset does not say
grouping   rows → groups → splits, such that no split shares a group with another
placements the split of every row ever placed, so that an old row never moves
splitting  all of these in order: a table of rows → the split of each, and a report
preparing  split rows → three tables and the report in the store, and remembered
table      a row's values ↔ the columns of a stored table; a stored table → DSPy examples
"""

from __future__ import annotations

from dspy_toolkit.datasets.checking import check_rows
from dspy_toolkit.datasets.preparing import prepare
from dspy_toolkit.datasets.reading import from_records, read_file, read_rows
from dspy_toolkit.datasets.spec import SPLITS, Dataset, DatasetReport, DatasetSpec, Fractions, Lengths, SplitName
from dspy_toolkit.datasets.splitting import SplitRows, split_rows
from dspy_toolkit.datasets.table import examples

__all__ = [
    "SPLITS",
    "Dataset",
    "DatasetReport",
    "DatasetSpec",
    "Fractions",
    "Lengths",
    "SplitName",
    "SplitRows",
    "check_rows",
    "examples",
    "from_records",
    "prepare",
    "read_file",
    "read_rows",
    "split_rows",
]
