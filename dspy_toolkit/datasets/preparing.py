"""A table of rows → three tables (train, val, sealed) and a report, in the store; what was placed is remembered.

The tables hold the inputs, the outputs, `_row` (the row's content hash) and `_group` (that of the row which founded its
group), sorted by `_row`: the same rows give the same bytes. Rows are remembered last, when every object is saved, so that a
run which dies half-way has placed nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets.placements import locked, recall, remember
from dspy_toolkit.datasets.spec import SPLITS, Dataset, DatasetSpec
from dspy_toolkit.datasets.splitting import split_rows
from dspy_toolkit.store import Store

if TYPE_CHECKING:
    import pandas as pd


def prepare(
    frame: pd.DataFrame,
    spec: DatasetSpec,
    fields: dict[str, Any],
    store: Store,
    *,
    drop_bad_rows: bool = False,
    near_duplicate: float = 0.8,
    remembered: Path | None = None,
    origin: str = "",
) -> Dataset:
    """Check, group, split and save `frame`. See `split_rows`.

    Args:
        remembered: the file that keeps every row's split; made when missing, and locked meanwhile.

    Raises:
        DatasetError: as `split_rows`; or `remembered` is damaged.
        StoreError: the store or `remembered` cannot be written; nothing is remembered then.
    """
    with locked(remembered):
        found = split_rows(
            frame,
            spec,
            fields,
            recall(remembered),
            drop_bad_rows=drop_bad_rows,
            near_duplicate=near_duplicate,
            origin=origin,
        )
        refs = {
            split: store.save_frame(found.table.iloc[[i for i, each in enumerate(found.splits) if each == split]])
            for split in SPLITS
        }
        dataset = Dataset(**refs, report=store.save_json(found.report))
        remember(remembered, found.placed)
    return dataset
