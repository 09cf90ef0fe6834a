"""The rows that a run's candidate was tuned on, which may not test it: training rows, the validation rows that the search read,
and what the programs were tuned on that it started from.

The validation rows that no search has read are as good as sealed ones, and join the sealed test.
"""

from __future__ import annotations

from dspy_toolkit.optimizers.plan.probe import PROBE_ROWS
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.source import trained_rows
from dspy_toolkit.run import Compilation


def rows_tuned_on(context: Context, made: Compilation) -> frozenset[str]:
    """`_row` hashes."""
    store, dataset, ref = context.store, made.dataset, made.ref
    val = sample_rows(store.read_frame(dataset.val), rows_read(made.choice.val_rows))
    own = [*store.read_frame(dataset.train)["_row"], *val["_row"]]
    return frozenset(map(str, own)) | trained_rows(ref.start, ref.night, dataset.sealed, context.project.dataset, store)


def rows_read(val_rows: int) -> int:
    """Validation rows that a search has looked at, which is to read `val_rows`: the probe has read some before it."""
    return max(val_rows, PROBE_ROWS)
