"""What is to be optimized: a program, the rows to learn from and to choose by, the metric and the models.

The probe and every generator are given the same problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.datasets import examples
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    from pathlib import Path

    import dspy
    import pandas as pd

    from dspy_toolkit.datasets import DatasetSpec
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.lm.models.weights import Weights
    from dspy_toolkit.metrics import Metric
    from dspy_toolkit.store import Store


class Start(NamedTuple):
    """A program to start from."""

    program: dspy.Module
    """The program of this project, with the instructions and demonstrations of the other one."""
    label: str
    """For people, such as `from router@3`."""


class Trainable(NamedTuple):
    """A model that adapters can be trained for."""

    weights: Weights
    home: Path
    """Where they are kept."""
    lease: bool = True
    """Whether a training has the accelerator to itself, and this process."""
    lease_seconds: float = 600.0
    """To wait for another process that has it."""


@dataclass(frozen=True, kw_only=True, eq=False)  # tables do not compare as one value
class Problem:
    """One program to improve, on two of the three splits."""

    program: dspy.Module
    """The baseline; never changed."""
    train: pd.DataFrame
    """The training rows, as `prepare` stores them: the columns of `spec`, `_row` and `_group`."""
    val: pd.DataFrame
    """The validation rows."""
    spec: DatasetSpec
    """Which columns are inputs and outputs."""
    metric: Metric
    connection: Connection
    """The language models: of the task, for reflection, the teacher and the judge."""
    store: Store
    """Where programs and scores are written."""
    trainable: Trainable | None = None
    """The task's model, where it is one that is trained here."""
    starts: tuple[Start, ...] = ()
    """Programs to start from: each is scored as one more candidate, and built on where it leads."""
    tried: frozenset[str] = frozenset()
    """Hashes of the prompts of earlier searches' candidates, which are not tried again; those of `starts` are no part of it."""
    seed: int = 0
    """Decides what a generator draws; which rows are sampled, it does not."""
    threads: int = 16
    """Runs of the program at once."""

    def val_sample(self, count: int) -> pd.DataFrame:
        """`count` validation rows (all, when there are fewer); a larger sample begins with these. The same every night: the
        rows beyond stay rows that no search has chosen by.
        """
        return sample_rows(self.val, count)

    def cases(self, rows: pd.DataFrame) -> list[dspy.Example]:
        """Rows of either split as examples of the program."""
        return examples(rows, self.spec, fields_of(self.program))
