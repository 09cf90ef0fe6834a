"""Which rows are computed together, in which order. Pure arithmetic: the same seed gives the same batches anywhere.

Every row is in exactly one batch of each epoch. Rows of similar length go together, so that little is padding, and rows
that begin alike (one program's instructions), so that a batch computes what its rows share once. Within that the order is
drawn anew for each epoch, as is the order of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_toolkit.finetuning.rows import EncodedRow
from dspy_toolkit.finetuning.values import TrainSettings

ALIKE = 24
"""First tokens by which rows are told to begin alike."""
BUCKET = 8
"""Tokens; rows whose lengths differ by less are of one length to the order."""
PASS_TOKENS = 32
"""A pass through the model costs as much as so many tokens more: its weights are read twice. Measured on a CPU."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows that go through the model together."""

    prefix: np.ndarray
    """Tokens that all rows begin with, computed once; may be empty. Shape (prefix,), int32."""
    inputs: np.ndarray
    """What follows in each row, padded with 0 on the right; shape (rows, width), int32."""
    rows: np.ndarray
    """Row of `inputs` of each scored token; shape (scored,), int32."""
    places: np.ndarray
    """Place in `inputs` from which each scored token is predicted; shape (scored,), int32."""
    targets: np.ndarray
    """The scored tokens; shape (scored,), int32."""
    encoded: tuple[EncodedRow, ...]
    """The rows themselves, in the order of `inputs`."""
    tokens: int
    """Of the rows, without padding, and counting the prefix for each row."""

    @property
    def positions(self) -> int:
        """Tokens that are computed."""
        return len(self.prefix) + self.inputs.size

    @property
    def cost(self) -> int:
        """What it takes to compute, as a number of tokens."""
        return self.positions + PASS_TOKENS * (2 if len(self.prefix) else 1)


def steps_of_epoch(rows: int, settings: TrainSettings) -> int:
    """Batches that `rows` make."""
    return math.ceil(rows / settings.batch_rows)


def total_steps(rows: int, settings: TrainSettings) -> int:
    """Steps of a training that nothing stops."""
    return max(1, round(settings.epochs * steps_of_epoch(rows, settings)))


def epoch_batches(rows: Sequence[EncodedRow], settings: TrainSettings, epoch: int, *, share: bool) -> list[list[Part]]:
    """The batches of one epoch, each in parts of at most `settings.part_tokens`.

    Args:
        epoch: from 0.
        share: whether this model can compute a common beginning once.
    """
    draw = np.random.default_rng([settings.seed, epoch])
    order = _alike(rows, draw.random(len(rows)))
    # Batches of equal size: a last one with a row or two would give these rows more weight.
    batches = [[rows[at] for at in part] for part in np.array_split(order, steps_of_epoch(len(rows), settings))]
    return [_parts(batches[at], settings.part_tokens, share=share) for at in draw.permutation(len(batches))]


def evaluation_parts(rows: Sequence[EncodedRow], settings: TrainSettings, *, share: bool) -> list[Part]:
    """All rows, in an order that depends on nothing else."""
    ordered = [rows[at] for at in _alike(rows, np.arange(len(rows)))]
    return _parts(ordered, settings.part_tokens, share=share)


def _alike(rows: Sequence[EncodedRow], drawn: np.ndarray) -> np.ndarray:
    """Indices of `rows` by beginning, then length, then `drawn`."""
    kinds: dict[bytes, int] = {}
    beginnings = [kinds.setdefault(row.tokens[:ALIKE].tobytes(), len(kinds)) for row in rows]
    return np.lexsort(np.array([drawn, [len(row.tokens) // BUCKET for row in rows], beginnings]))


def _parts(rows: Sequence[EncodedRow], most: int, *, share: bool) -> list[Part]:
    """`rows` in their order, in as few parts of at most `most` tokens as that takes. One row may be longer."""
    parts: list[Part] = []
    taken: list[EncodedRow] = []
    for row in rows:
        if taken and _part([*taken, row], share=share).positions > most:
            parts.append(_part(taken, share=share))
            taken = []
        taken.append(row)
    return [*parts, _part(taken, share=share)]


def _part(rows: Sequence[EncodedRow], *, share: bool) -> Part:
    shared = _common(rows) if share else 0
    if shared * (len(rows) - 1) <= PASS_TOKENS:  # not worth a pass of its own
        shared = 0
    # The last token is a target only.
    lengths = [len(row.tokens) - 1 - shared for row in rows]
    inputs = np.zeros((len(rows), max(lengths)), np.int32)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        inputs[at, :length] = row.tokens[shared:-1]
    return Part(
        prefix=rows[0].tokens[:shared],
        inputs=inputs,
        rows=np.repeat(np.arange(len(rows), dtype=np.int32), [len(row.scored) for row in rows]),
        places=np.concatenate([row.scored - 1 - shared for row in rows]),
        targets=np.concatenate([row.tokens[row.scored] for row in rows]),
        encoded=tuple(rows),
        tokens=sum(len(row.tokens) for row in rows),
    )


def _common(rows: Sequence[EncodedRow]) -> int:
    """First tokens that all rows have in common, up to the first one from which a scored token is predicted."""
    most = min(int(row.scored[0]) for row in rows) - 1
    first = rows[0].tokens[:most]
    for row in rows[1:]:
        differ = np.flatnonzero(first != row.tokens[: len(first)])
        if len(differ):
            first = first[: differ[0]]
    return len(first)
