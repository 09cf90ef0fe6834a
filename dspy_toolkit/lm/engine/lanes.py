"""One batch for each adapter that is asked for, and one for the base, on one loaded model.

Sequences of two adapters cannot share a step. The lanes that have sequences take turns, a step each, so that none waits for
another to be empty; who joins is decided before, in the order of arrival. Together they hold no more sequences, and no more
of prefixes, than one batch would.

It has the methods of `Batch`, which the engine uses, and hands them on. For the engine's thread only.
"""

from __future__ import annotations

from collections import abc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.lm.engine.batch import Batch
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence

if TYPE_CHECKING:
    from dspy_toolkit.lm.engine.caches import Prefix
    from dspy_toolkit.lm.engine.prefix_cache import PrefixCache

BITS = 32
"""Of a token's number: what is above tells one adapter's prefixes from another's."""


class Lanes:
    """The batches of one model. Without a request for an adapter, it is its base's batch and nothing more."""

    def __init__(self, base: Batch, folder: Path | None) -> None:
        """Args: base: the batch that loaded the model; folder: `home/adapters`."""
        from dspy_toolkit.lm.engine.adapters import Adapters

        self._adapters = Adapters(base.model, folder)
        self._lanes: dict[str | None, Batch] = {None: base}
        self._numbers: dict[str, int] = {}
        """Of all adapters so far: what was computed with one serves it again."""
        self._over: list[tuple[Sequence, Outcome]] = []
        self._last: str | None = None

    @property
    def base(self) -> Batch:
        """The batch of the model without an adapter."""
        return self._lanes[None]

    @property
    def sequences(self) -> list[Sequence]:
        """All that are prefilled or decoded."""
        return [sequence for lane in self._lanes.values() for sequence in lane.sequences]

    @property
    def counts(self) -> dict[str, Any]:
        """As `Batch.counts`, of all lanes."""
        # All lanes count into the base's counters.
        return self.base.counts | {"cache_bytes": sum(lane.counts["cache_bytes"] for lane in self._lanes.values())}

    def note(self, sequence: Sequence) -> None:
        """As `Batch.note`."""
        self._lane(sequence.request.adapter).note(sequence)

    def has_room(self, sequence: Sequence, beside: abc.Sequence[Sequence]) -> bool:
        """As `Batch.has_room`, beside the sequences of all lanes."""
        lane = self._lane(sequence.request.adapter)
        others = [each for other in self._lanes.values() if other is not lane for each in other.sequences]
        return lane.has_room(sequence, [*others, *beside])

    def insert(self, sequences: abc.Sequence[Sequence]) -> None:
        """Start `sequences`; those whose adapter cannot be had end with why."""
        for adapter in dict.fromkeys(sequence.request.adapter for sequence in sequences):
            mine = [sequence for sequence in sequences if sequence.request.adapter == adapter]
            lane = self._lane(adapter)
            if adapter is not None:
                try:
                    with lane.on_stream():
                        self._adapters.load(adapter)
                except ToolkitError as error:
                    for sequence in mine:
                        sequence.error = error
                        self._over.append((sequence, "stop"))
                    continue
            lane.insert(mine)

    def step(self) -> None:
        """Take a step of the lane whose turn it is."""
        names = list(self._lanes)
        at = names.index(self._last) if self._last in self._lanes else 0
        for name in (*names[at + 1 :], *names[: at + 1]):
            lane = self._lanes[name]
            if lane.sequences:
                self._last = name
                with lane.on_stream():
                    self._adapters.activate(name)
                lane.step()
                break
        for name in [name for name, lane in self._lanes.items() if name is not None and not lane.sequences]:
            self._over += self._lanes.pop(name).take_over()  # its prefixes stay

    def embed(self, texts: list[list[int]]) -> list[tuple[float, ...]]:
        """Vectors of some texts' tokens, by the model without an adapter."""
        from dspy_toolkit.lm.engine.embedding import embed

        with self.base.on_stream():
            self._adapters.activate(None)
            return embed(self.base.model, texts)

    def take_over(self) -> list[tuple[Sequence, Outcome]]:
        """As `Batch.take_over`."""
        over, self._over = self._over, []
        return [*over, *(each for lane in self._lanes.values() for each in lane.take_over())]

    def remove(self, gone: set[Sequence]) -> None:
        """As `Batch.remove`."""
        for lane in self._lanes.values():
            lane.remove(gone)

    def reset(self) -> None:
        """As `Batch.reset`; the model is as it was loaded."""
        self._adapters.activate(None)
        self._lanes = {None: self.base}
        self.base.reset()
        self._over.clear()

    def free(self) -> None:
        """Give the model's memory back."""
        base = self.base
        self._lanes.clear()
        del self._adapters
        base.free()

    def _lane(self, adapter: str | None) -> Batch:
        if adapter not in self._lanes:
            assert adapter is not None
            number = self._numbers.setdefault(adapter, len(self._numbers) + 1)
            self._lanes[adapter] = self.base.beside(lambda prefixes: PrefixesOf(number, prefixes))
        return self._lanes[adapter]


class PrefixesOf:
    """One adapter's part of a `PrefixCache`: what the base, or another adapter, computed for the same tokens is not its own."""

    def __init__(self, number: int, prefixes: PrefixCache) -> None:
        """Args: number: from 1, of the adapter."""
        self._number, self._prefixes = number, prefixes
        self.divisible = prefixes.divisible

    @property
    def nbytes(self) -> int:
        """Of all that is kept, whoever's."""
        return self._prefixes.nbytes

    @property
    def budget_bytes(self) -> int:
        """For all that is kept."""
        return self._prefixes.budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, count: int) -> None:
        self._prefixes.budget_bytes = count

    def note(self, prompt: np.ndarray) -> None:
        """As `PrefixTree.note`."""
        self._prefixes.note(self._own(prompt))

    def shared(self, prompt: np.ndarray) -> int:
        """As `PrefixTree.shared`."""
        return self._prefixes.shared(self._own(prompt))

    def find(self, prompt: np.ndarray) -> tuple[int, Prefix | None]:
        """As `PrefixCache.find`."""
        return self._prefixes.find(self._own(prompt))

    def keep_row(self, tokens: np.ndarray, caches: list[Any], row: int) -> Prefix:
        """As `PrefixCache.keep_row`."""
        return self._prefixes.keep_row(self._own(tokens), caches, row)

    def unkept_bytes(self, batches: abc.Sequence[list[Any]]) -> int:
        """As `PrefixCache.unkept_bytes`."""
        return self._prefixes.unkept_bytes(batches)

    def shed(self, nbytes: int) -> None:
        """As `PrefixTree.shed`, of all that is kept."""
        self._prefixes.shed(nbytes)

    def clear(self) -> None:
        """Nothing: the whole is cleared with the base's."""

    def _own(self, tokens: np.ndarray) -> np.ndarray:
        # Another first token: a tree that begins with it shares nothing with the others.
        own = tokens.copy()
        own[0] += self._number << BITS
        return own
