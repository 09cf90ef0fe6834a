"""KV caches of the rows of a batch, made of mlx_lm's: how rows are padded is known without asking the device.

mlx_lm's own cache of a batch reads its padding from the device whenever rows leave or are taken out: once a layer, and each
time what runs ahead must be waited for. Its room also stays as large as its longest row ever was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from dspy_toolkit.lm.engine.footprint import STEP


class RowsKVCache(BatchKVCache):
    """One layer's keys and values, with the methods of mlx_lm's. All rows end together; shorter ones begin later."""

    step = STEP

    def __init__(self, padding: Sequence[int]) -> None:
        """Args: padding: columns before each row's first token."""
        super().__init__(list(padding))
        self.padding = list(padding)
        """The same as `left_padding`, on the host."""
        self._ends: list[int] | None = None

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> RowsKVCache:
        """A batch whose rows are copies of `caches`."""
        lengths = [cache.offset for cache in caches]
        longest = max(lengths)
        rows = cls([longest - length for length in lengths])
        if longest == 0:
            return rows
        held = next(cache for cache in caches if cache.keys is not None)
        for name in ("keys", "values"):
            like: Any = getattr(held, name)
            parts = []
            for cache, padding in zip(caches, rows.padding, strict=True):
                array: Any = getattr(cache, name)
                if array is None:
                    array = mx.zeros((1, like.shape[1], 0, like.shape[3]), like.dtype)
                parts.append(mx.pad(array[..., : cache.offset, :], [(0, 0), (0, 0), (padding, 0), (0, 0)]))
            setattr(rows, name, mx.concatenate(parts))
        rows.offset, rows._idx = mx.array(lengths), longest
        return rows

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self._idx - min(self.padding)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Which tokens `length` new ones may see; None where one new token sees all."""
        plain = window_size is None and not any(self.padding)
        if plain and length == 1 and not return_array:
            return None
        return super().make_mask(length, return_array, **({} if window_size is None else {"window_size": window_size}))

    def prepare(self, *, left_padding: Any = None, lengths: Any = None, right_padding: Any = None) -> None:
        """As mlx_lm's: the next tokens come padded."""
        super().prepare(left_padding=left_padding, lengths=lengths, right_padding=right_padding)
        if left_padding is not None:
            self.padding = [a + b for a, b in zip(self.padding, left_padding, strict=True)]
        self._ends = None if right_padding is None else list(right_padding)

    def finalize(self) -> None:
        """As mlx_lm's: drop the padding."""
        super().finalize()
        if self._ends is not None:
            self.padding = [a + b for a, b in zip(self.padding, self._ends, strict=True)]
            self._ends = None

    def filter(self, rows: Sequence[int]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep some rows, and no more room than they need."""
        index = mx.array(list(rows))
        self.padding = [self.padding[row] for row in rows]
        spare = min(self.padding)
        for name in ("keys", "values") if self.keys is not None else ():
            kept = getattr(self, name)[index]
            # Contiguous: a part of an array holds on to the whole of it.
            setattr(self, name, mx.contiguous(kept[..., spare:, :]) if spare else kept)
        self.offset = self.offset[index]
        self.left_padding = self.left_padding[index]
        if spare:
            self.padding = [padding - spare for padding in self.padding]
            self.left_padding = self.left_padding - spare
            self._idx -= spare

    def extend(self, other: RowsKVCache) -> None:
        """Append another batch's rows."""
        longest = max(self._idx, other._idx)
        self.padding = [
            *(padding + longest - self._idx for padding in self.padding),
            *(padding + longest - other._idx for padding in other.padding),
        ]
        super().extend(other)

    def extract(self, row: int) -> KVCache:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One row's own cache."""
        cache, begin = KVCache(), self.padding[row]
        cache.keys = mx.contiguous(self.keys[row : row + 1, :, begin : self._idx])  # pyright: ignore[reportOptionalSubscript]
        cache.values = mx.contiguous(self.values[row : row + 1, :, begin : self._idx])  # pyright: ignore[reportOptionalSubscript]
        cache.offset = self._idx - begin
        return cache

    def trim_room(self, tokens: int) -> None:
        """Leave room for no more than `tokens`."""
        for name in ("keys", "values") if self.keys is not None else ():
            # Contiguous: of anything else, MLX on a CPU picks rows one number at a time.
            setattr(self, name, mx.contiguous(getattr(self, name)[..., : self._idx + tokens, :]))


class _OneRow:
    """What a batch asks of a cache that mlx_lm cannot batch, where the batch has one row."""

    def filter(self, rows: Sequence[int]) -> None:
        """The only row stays."""
        if list(rows) != [0]:
            raise ValueError(f"{type(self).__name__} has one row, and rows {list(rows)} are to stay.")

    def extend(self, other: Any) -> None:
        """Never: the batch has room for one."""
        raise ValueError(f"{type(self).__name__} has one row and cannot take another.")

    def extract(self, row: int) -> Any:
        """A copy, as mlx_lm has it."""
        cache = copy.deepcopy(self)
        cache.__class__ = type(self).__mro__[2]
        return cache

    def prepare(self, **padding: Any) -> None:
        """One row needs no padding."""

    def finalize(self) -> None:
        """Nor does it go."""


def alone(cache: Any) -> Any:
    """A copy of a cache that mlx_lm cannot batch (Llama 4's chunks), as a batch of one row."""
    kind = type(cache)
    row = copy.deepcopy(cache)
    row.__class__ = type(f"OneRow{kind.__name__}", (_OneRow, kind), {})
    return row
