"""KV caches that are kept for prompts to come: what of a prompt need not be computed again.

`PrefixTree` finds them by their tokens and keeps them within a budget; here is what it holds. With `lm.kv_bits` a
prefix is kept in fewer bits and unpacked when a sequence starts from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.caches import Prefix, compact, cut, divisible, size_of
from dspy_toolkit.lm.engine.prefixes import PrefixTree
from dspy_toolkit.lm.engine.quantized import pack, unpack


class PrefixCache(PrefixTree):
    """A `PrefixTree` whose values are KV caches. For the engine's thread only."""

    def __init__(self, model: Any, budget_bytes: int, kv_bits: int | None) -> None:
        """Args: model: whose caches they are; budget_bytes: for all of them; kv_bits: 4, 8, or None for unquantized."""
        self.divisible = divisible(model)
        """Whether the beginning of a prefix is a prefix too."""
        super().__init__(budget_bytes, self._cut if self.divisible else None)
        self._bits = kv_bits
        self._unpacked: tuple[Any, Any] = (None, None)

    def find(self, prompt: np.ndarray) -> tuple[int, Prefix | None]:
        """(length, caches) of the longest kept beginning of `prompt` that leaves a token over, or (0, None)."""
        length, kept = self.longest(prompt)
        return length, self._unpack(kept)

    def keep_row(self, tokens: np.ndarray, caches: list[Any], row: int) -> Prefix:
        """Keep what one row of a batch's `caches` holds, which was computed for `tokens`, and give it."""
        import mlx.core as mx

        prefix = compact([cache.extract(row) for cache in caches])
        mx.eval([layer.state for layer in prefix])
        self.keep(tokens, *self._pack(prefix))
        return prefix

    def unkept_bytes(self, batches: Sequence[list[Any]]) -> int:
        """Of prefixes that are held for running rows alone. Args: batches: the caches of each, a layer each."""
        found: dict[int, int] = {}
        for caches in batches:
            at = next(at for at, cache in enumerate(caches) if hasattr(cache, "runs"))
            used = {id(prefix): rows.start for prefix, rows in caches[at].runs if prefix is not None}
            if used:
                kept = {id(node.kept[at]) for node in self._used}
                used = {key: row for key, row in used.items() if key not in kept}
            for key, row in used.items():
                layers = [cache for cache in caches if hasattr(cache, "runs")]
                found[key] = sum(layer.prefixes[row].nbytes for layer in layers)
        return sum(found.values())

    def _cut(self, kept: Any, length: int) -> tuple[Any, int]:
        return self._pack(cut(self._unpack(kept), length))

    def _pack(self, prefix: Prefix) -> tuple[Any, int]:
        """(a prefix as it is kept, its bytes)."""
        packed = prefix if self._bits is None else pack(prefix, self._bits)
        return packed, size_of(packed)

    def _unpack(self, kept: Any) -> Any:
        """A kept prefix as sequences start from it."""
        if kept is None or self._bits is None:
            return kept
        # Sequences that start from one prefix must get the same object: it is held, and read, once for all of them.
        if self._unpacked[0] is not kept:
            self._unpacked = (kept, compact(unpack(kept)))
        return self._unpacked[1]
