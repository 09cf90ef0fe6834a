"""What is to be optimized: a program, the rows to learn from and to choose by, the metric that scores, the model that answers.

The same for a look, for every optimizer, and for every lap of a race; what each is told beside it is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.datasets import examples
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    import dspy
    import pandas as pd

    from dspy_toolkit.datasets import DatasetSpec
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.metrics import Metric
    from dspy_toolkit.store import Store


class Start(NamedTuple):
    """A program to start from."""

    program: dspy.Module
    """This project's, with what was carried over."""
    label: str
    """`from router@3`."""


@dataclass(frozen=True, kw_only=True, eq=False)  # tables do not compare as one value
class Problem:
    """One program to make better, on two splits: the third is not asked for."""

    program: dspy.Module
    """As it came; it is not changed."""
    train: pd.DataFrame
    """The rows to learn from, as `prepare` stores them: the columns of `spec`, `_row` and `_group`."""
    val: pd.DataFrame
    """The rows to choose by."""
    spec: DatasetSpec
    """Which columns are inputs and outputs."""
    metric: Metric
    connection: Connection
    """The model that answers, and the one that writes instructions."""
    store: Store
    """Where the programs and scores that are found go."""
    start: Start | None = None
    """A program from elsewhere: one more candidate of each optimizer, and what it searches from where it is the better one."""
    seed: int = 0
    """Decides which rows are sampled, and what an optimizer draws."""
    threads: int = 16
    """Program runs at once."""

    def val_sample(self, count: int) -> pd.DataFrame:
        """`count` validation rows (all, when there are fewer), the beginning of every larger sample."""
        return sample_rows(self.val, count, self.seed)

    def cases(self, rows: pd.DataFrame) -> list[dspy.Example]:
        """Rows of either split as examples of the program."""
        return examples(rows, self.spec, fields_of(self.program))
