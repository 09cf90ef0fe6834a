"""The names by which the ledger knows the rows of a test set again.

A row that was edited is not a fresh one: a space more, another label, a column under another name. So a row goes by the
normalised text of its inputs, and by all that is known of its group of near-duplicates: the texts and the content hashes of
the rows that were ever placed in it. Those of 0.1.0 are in old ledgers. Names are hashes: the ledger holds no text.

Not covered: what rows are near-duplicates (`dspy_toolkit.datasets`), what the names are for (`dspy_toolkit.gate.ledger`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.datasets.neighbors import comparable
from dspy_toolkit.datasets.placements import recall
from dspy_toolkit.datasets.table import as_text
from dspy_toolkit.store import digest

if TYPE_CHECKING:
    import pandas as pd

BETWEEN_INPUTS = "\x1f"
"""What `comparable` joins inputs by."""


def row_names(frame: pd.DataFrame, spec: DatasetSpec, remembered: Path | None = None) -> frozenset[str]:
    """All names of the rows of `frame` and of their groups.

    Args:
        frame: rows of a split.
        spec: which columns are inputs.
        remembered: the file of placements; without one the rows that are there name themselves.

    Raises:
        DatasetError: the file of placements is damaged.
    """
    groups = {str(group) for group in frame["_group"]}
    names = groups | {str(row) for row in frame["_row"]}
    names |= {name_of_text(comparable(as_text(case[name]) for name in spec.inputs)) for case in examples(frame, spec)}
    for placement in recall(remembered):
        if placement.group in groups:
            names |= {placement.row, name_of_text(placement.text)}
    return frozenset(names)


def name_of_text(text: str) -> str:
    """16 hex digits for the inputs of a row, as `comparable` gives them; the order of the columns does not count."""
    return digest(sorted(text.split(BETWEEN_INPUTS)))[:16]
