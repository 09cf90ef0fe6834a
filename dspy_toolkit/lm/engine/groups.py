"""Which sequences are decoded together: rows of like length side by side, outliers apart.

Rows of one batch are stored as wide as the longest of them, and a step reads all that is stored. One row of 8,000 tokens
beside fifteen of 200 would make them take forty times their bytes. A step of a group apart reads the weights once more. So
rows join a group while the padding that this makes takes no more than the weights do, and fits.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from itertools import combinations
from typing import Any

from dspy_toolkit.lm.engine.decode import Decoding, Steps
from dspy_toolkit.lm.engine.footprint import Footprint, length_of
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence

MOST = 4
"""Groups beyond which padding is no reason for another; each costs a step of its own."""


class Groups:
    """The sequences of one batch that are decoded. For the engine's thread only."""

    def __init__(self, make: Callable[[], Decoding], footprint: Footprint, weights_bytes: float) -> None:
        """Args: make: an empty group; weights_bytes: what a step reads whatever its rows are."""
        self.counts = Steps()
        self._make, self._footprint, self._weights_bytes = make, footprint, weights_bytes
        self._groups: list[Decoding] = []

    @property
    def sequences(self) -> list[Sequence]:
        """Of all groups."""
        return [sequence for group in self._groups for sequence in group.sequences]

    @property
    def caches(self) -> list[Any]:
        """Of all groups."""
        return [cache for group in self._groups for cache in group.caches]

    def bytes_after(self, tokens: Callable[[list[Sequence]], int] = lambda rows: 1) -> float:
        """What all groups take at most once each has grown by `tokens`, of its sequences."""
        return sum(
            self._footprint.stored(len(group.sequences), length_of(group.caches) + tokens(group.sequences))
            for group in self._groups
        )

    def join(self, sequences: abc.Sequence[Sequence], caches: list[Any], room: float) -> None:
        """Add sequences whose prompts are in `caches`, but for the pending last token.

        Args:
            room: bytes that there are for padding.
        """
        costs = {group: self._padding(group, len(sequences), length_of(caches)) for group in self._groups}
        best = min(costs, key=costs.__getitem__, default=None)
        worth = self._weights_bytes if len(self._groups) < MOST else float("inf")
        if best is None or costs[best] > min(worth, room):
            best = self._make()
            best.counts = self.counts
            self._groups.append(best)
        best.join(sequences, caches)

    def _padding(self, group: Decoding, rows: int, length: int) -> float:
        """Bytes that joining `group` costs beside those of the rows themselves."""
        own, held = len(group.sequences), length_of(group.caches)
        stored = self._footprint.stored
        return stored(own + rows, max(length, held)) - stored(own, held) - stored(rows, length)

    def step(self, room: float) -> list[tuple[Sequence, Outcome]]:
        """A step of each group; the sequences that ended, with why. Args: room: as `join`'s."""
        over = self._unite(room)
        for group in self._groups:
            if group.sequences:
                over += group.step()
        self._groups = [group for group in self._groups if group.sequences]
        return over

    def _unite(self, room: float) -> list[tuple[Sequence, Outcome]]:
        """Put two groups together where what kept them apart has gone."""
        for group, other in combinations(self._groups, 2):
            if self._padding(group, len(other.sequences), length_of(other.caches)) <= min(self._weights_bytes, room):
                over = other.settle()
                self._groups.remove(other)
                if other.sequences:
                    group.join(other.sequences, other.caches)
                return over
        return []

    def remove(self, gone: abc.Container[Sequence]) -> None:
        """Drop sequences."""
        for group in self._groups:
            stay = [row for row, sequence in enumerate(group.sequences) if sequence not in gone]
            if len(stay) < len(group.sequences):
                group.keep(stay)
        self._groups = [group for group in self._groups if group.sequences]

    def clear(self) -> None:
        """Drop all sequences; the counts stay."""
        self._groups.clear()
