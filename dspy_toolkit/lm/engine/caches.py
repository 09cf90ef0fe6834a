"""KV caches of rows that are computed together, made of mlx_lm's.

Rows start from prefixes. Where attention is our own (`models.cpu`), a prefix is held once for all rows that share it
and read once a step (`SharedKVCache`). Elsewhere, and in layers whose caches are not plain keys and values (sliding
windows, state-space layers), each row starts from a copy, as mlx_lm merges caches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import BatchRotatingKVCache, KVCache, make_prompt_cache

from dspy_toolkit.lm.engine.footprint import STEP
from dspy_toolkit.lm.engine.rows import RowsKVCache, alone

Prefix: TypeAlias = list[Any]
"""What one row's prompt left in the caches: one mlx_lm cache a layer."""


class SharedKVCache:
    """One layer's keys and values of a batch: each row's own, which follow those of a prefix that is held once.

    It has the methods of mlx_lm's batch caches, but `update_and_fetch` gives the rows' own keys and values only:
    attention must read the prefixes in `runs` too. Sixteen prompts that begin alike then cost one prefix in memory, and
    each step reads it with one matrix product instead of sixteen.
    """

    def __init__(self, prefixes: Sequence[KVCache | None], copied: Sequence[KVCache | None] = ()) -> None:
        """
        Args:
            prefixes: compact ones, one a row; rows of one prefix should stand side by side.
            copied: one a row: what its own keys and values begin with, copied.
        """
        if any(cache is not None for cache in copied):
            self.own = RowsKVCache.merge([cache or KVCache() for cache in copied])
        else:
            self.own = RowsKVCache([0] * len(prefixes))
        """The rows' own keys and values."""
        self.prefixes = list(prefixes)
        """One a row."""
        self._arrange()

    def _arrange(self) -> None:
        """Find the runs of neighbouring rows with one prefix, and where each row's own tokens start."""
        self.runs: list[tuple[KVCache | None, slice]] = []
        """(prefix, the neighbouring rows that start from it)."""
        at = 0
        # By identity: equal prefixes that are two objects are two arrays, which no single product reads.
        for _, run in groupby(self.prefixes, key=id):
            rows = list(run)
            self.runs.append((rows[0], slice(at, at + len(rows))))
            at += len(rows)
        self._before = mx.array([0 if prefix is None else prefix.offset for prefix in self.prefixes])

    @property
    def offset(self) -> mx.array:
        """Positions of the rows' next tokens, shape (rows,)."""
        return self.own.offset + self._before

    @property
    def state(self) -> Any:
        """The arrays to evaluate."""
        return self.own.state if self.own.keys is not None else []

    @property
    def nbytes(self) -> int:
        """Of the rows' own keys and values."""
        return self.own.nbytes if self.own.keys is not None else 0

    def make_mask(self, length: int, return_array: bool = False, **kwargs: Any) -> mx.array:
        """Which of the rows' own tokens each of `length` new tokens may see; all may see the whole prefix."""
        return self.own.make_mask(length, return_array, **kwargs)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append, and give the rows' own keys and values."""
        return self.own.update_and_fetch(keys, values)

    def prepare(self, **padding: Any) -> None:
        """As mlx_lm's: the next tokens come padded."""
        self.own.prepare(**padding)

    def finalize(self) -> None:
        """As mlx_lm's: drop the padding."""
        self.own.finalize()

    def filter(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        self.own.filter(rows)
        self.prefixes = [self.prefixes[row] for row in rows]
        self._arrange()

    def trim_room(self, tokens: int) -> None:
        """Leave room for no more than `tokens`: a row's own are few, and most of a copy would be room."""
        self.own.trim_room(tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedKVCache:
        """The prefixes are not copied: they are known by identity, and never change."""
        copied = copy.copy(self)
        copied.own = copy.deepcopy(self.own, memo)
        copied.prefixes = list(self.prefixes)
        return copied

    def extend(self, other: SharedKVCache) -> None:
        """Append another batch's rows."""
        self.own.extend(other.own)
        self.prefixes += other.prefixes
        self._arrange()

    def extract(self, row: int) -> KVCache:
        """One row's whole cache, prefix included."""
        own: Any = self.own.extract(row)
        prefix: Any = self.prefixes[row]
        if prefix is None:
            return own
        return _whole(mx.concatenate([prefix.keys, own.keys], 2), mx.concatenate([prefix.values, own.values], 2))


def batchable(model: Any) -> bool:
    """Whether several rows can be computed together."""
    return all(hasattr(cache, "merge") for cache in make_prompt_cache(model))


def divisible(model: Any) -> bool:
    """Whether the model's caches are plain keys and values, whose beginning is the cache of the prompt's beginning.

    A sliding window has forgotten its beginning, and a state-space layer has it folded into one state.
    """
    return all(type(cache) is KVCache for cache in make_prompt_cache(model))


def cut(prefix: Prefix, length: int) -> Prefix:
    """The first `length` tokens of a prefix of plain caches."""
    return [_whole(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in prefix]


def compact(prefix: Prefix) -> Prefix:
    """A prefix without the room that plain caches allocate ahead: it will not grow, and the budget counts its bytes."""
    return [_whole(*layer.keys_and_values()) if type(layer) is KVCache else layer for layer in prefix]


def size_of(prefix: Prefix) -> int:
    """Bytes."""
    return sum(layer.nbytes for layer in prefix)


def start(model: Any, prefixes: Sequence[Prefix | None], *, shared: bool, share_from: float = 0) -> list[Any]:
    """The caches of a new batch, one a layer.

    Args:
        prefixes: one a row; None starts empty. They are not changed.
        shared: hold each prefix once, in layers of plain keys and values; else every row gets a copy.
        share_from: tokens below which a prefix is copied even so.

    Raises:
        ValueError: several rows of a model that is not `batchable`.
    """
    fresh = make_prompt_cache(model)
    if not batchable(model):
        if len(prefixes) > 1:
            raise ValueError(f"This model's rows cannot be computed together, and there are {len(prefixes)}.")
        # All layers: where one is a batch, its positions are arrays, which Llama 4's other layers do not take.
        return [alone(layer) for layer in prefixes[0] or fresh]
    return [
        _layer(kind, [prefix[at] if prefix else None for prefix in prefixes], shared, share_from)
        for at, kind in enumerate(fresh)
    ]


def _layer(kind: Any, prefixes: list[Any], shared: bool, share_from: float) -> Any:
    """One layer's caches of a new batch. Args: kind: an empty cache of the layer."""
    if shared and type(kind) is KVCache:
        long = [prefix is not None and prefix.offset >= share_from for prefix in prefixes]
        held = [prefix if is_long else None for prefix, is_long in zip(prefixes, long, strict=True)]
        copied = [None if is_long else prefix for prefix, is_long in zip(prefixes, long, strict=True)]
        return SharedKVCache(held, copied)
    return _batch([copy.deepcopy(kind) if prefix is None else prefix for prefix in prefixes])


def _batch(rows: Sequence[Any]) -> Any:
    """One layer's caches of some rows as one."""
    if all(type(cache) is KVCache for cache in rows):
        return RowsKVCache.merge(rows)
    batch = rows[0].merge(list(rows))
    if hasattr(batch, "step"):
        batch.step = STEP
    return batch


def extend(caches: list[Any], others: list[Any]) -> list[Any]:
    """The caches of both batches together; `caches` may be empty, for a batch without rows."""
    for cache in others:
        _close_window(cache)
    if not caches:
        return others
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)
    return caches


def _close_window(cache: Any) -> None:
    """Drop what a pass over many tokens left beyond a sliding window: else the next batch would be as wide.

    mlx_lm's cache does the same with its next single token.
    """
    if isinstance(cache, BatchRotatingKVCache) and cache.keys is not None and cache.keys.shape[2] > cache.max_size:
        beyond = cache.keys.shape[2] - cache.max_size
        held: Any = (cache.keys, cache.values)
        cache.keys, cache.values = (mx.contiguous(each[..., beyond:, :]) for each in held)
        cache.left_padding = cache.left_padding - beyond
        cache._idx = cache.max_size


def keep_rows(caches: list[Any], rows: Sequence[int]) -> list[Any]:
    """The caches of some rows only; empty when none is left."""
    if not rows:
        return []
    for cache in caches:
        cache.filter(list(rows))
    return caches


def branch(caches: list[Any], rows: Sequence[int], grow: int) -> list[Any]:
    """New caches that hold copies of some rows, at least one; a row may come several times. `caches` do not change.

    Args:
        grow: tokens that the copies are about to grow by.
    """
    copies = copy.deepcopy(caches)  # arrays are not copied before they are written to
    for cache in copies:
        if isinstance(cache, SharedKVCache):
            cache.trim_room(grow)
    return keep_rows(copies, rows)


def _whole(keys: Any, values: Any) -> KVCache:
    cache = KVCache()
    cache.keys, cache.values = mx.contiguous(keys), mx.contiguous(values)
    cache.offset = keys.shape[2]
    return cache
