"""KV caches of rows that are computed together, made of mlx_lm's.

Rows start from prefixes. Where attention is our own (`models.cpu`), a prefix is held once for all rows that share it
and read once a step (`SharedKVCache`). Elsewhere, and for models whose caches are not plain keys and values (sliding
windows, state-space layers), each row starts from a copy, as mlx_lm merges caches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

Prefix: TypeAlias = list[Any]
"""What one row's prompt left in the caches: one mlx_lm cache a layer."""


class _Own(BatchKVCache):
    step = 64  # replies are short: less is allocated ahead than mlx_lm does


class SharedKVCache:
    """One layer's keys and values of a batch: each row's own, which follow those of a prefix that is held once.

    It has the methods of mlx_lm's batch caches, but `update_and_fetch` gives the rows' own keys and values only:
    attention must read the prefixes in `runs` too. Sixteen prompts that begin alike then cost one prefix in memory, and
    each step reads it with one matrix product instead of sixteen.
    """

    def __init__(self, prefixes: Sequence[KVCache | None]) -> None:
        """Args: prefixes: compact ones, one a row; rows of one prefix should stand side by side."""
        self._own = _Own([0] * len(prefixes))
        self._prefixes = list(prefixes)
        self._arrange()

    def _arrange(self) -> None:
        """Find the runs of neighbouring rows with one prefix, and where each row's own tokens start."""
        self.runs: list[tuple[KVCache | None, slice]] = []
        """(prefix, the neighbouring rows that start from it)."""
        at = 0
        # By identity: equal prefixes that are two objects are two arrays, which no single product reads.
        for _, run in groupby(self._prefixes, key=id):
            rows = list(run)
            self.runs.append((rows[0], slice(at, at + len(rows))))
            at += len(rows)
        self._before = mx.array([0 if prefix is None else prefix.offset for prefix in self._prefixes])

    @property
    def offset(self) -> mx.array:
        """Positions of the rows' next tokens, shape (rows,)."""
        return self._own.offset + self._before

    @property
    def state(self) -> Any:
        """The arrays to evaluate."""
        return self._own.state if self._own.keys is not None else []

    @property
    def nbytes(self) -> int:
        """Of the rows' own keys and values."""
        return self._own.nbytes if self._own.keys is not None else 0

    def make_mask(self, length: int, return_array: bool = False, **kwargs: Any) -> mx.array:
        """Which of the rows' own tokens each of `length` new tokens may see; all may see the whole prefix."""
        return self._own.make_mask(length, return_array, **kwargs)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append, and give the rows' own keys and values."""
        return self._own.update_and_fetch(keys, values)

    def prepare(self, **padding: Any) -> None:
        """As mlx_lm's: the next tokens come padded."""
        self._own.prepare(**padding)

    def finalize(self) -> None:
        """As mlx_lm's: drop the padding."""
        self._own.finalize()

    def filter(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        self._own.filter(mx.array(list(rows)))
        self._prefixes = [self._prefixes[row] for row in rows]
        self._arrange()

    def trim_room(self, tokens: int) -> None:
        """Leave room for no more than `tokens`: a row's own are few, and most of a copy would be room."""
        own: Any = self._own
        for name in ("keys", "values") if own.keys is not None else ():
            # Contiguous: of anything else, MLX on a CPU picks rows one number at a time.
            setattr(own, name, mx.contiguous(getattr(own, name)[..., : own._idx + tokens, :]))

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedKVCache:
        """The prefixes are not copied: they are known by identity, and never change."""
        copied = copy.copy(self)
        copied._own = copy.deepcopy(self._own, memo)
        copied._prefixes = list(self._prefixes)
        return copied

    def extend(self, other: SharedKVCache) -> None:
        """Append another batch's rows."""
        self._own.extend(other._own)
        self._prefixes += other._prefixes
        self._arrange()

    def extract(self, row: int) -> KVCache:
        """One row's whole cache, prefix included."""
        own: Any = self._own.extract(row)
        prefix: Any = self._prefixes[row]
        if prefix is None:
            return own
        return _whole(mx.concatenate([prefix.keys, own.keys], 2), mx.concatenate([prefix.values, own.values], 2))


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


def start(model: Any, prefixes: Sequence[Prefix | None], *, shared: bool) -> list[Any]:
    """The caches of a new batch, one a layer.

    Args:
        prefixes: one a row; None starts empty. They are not changed.
        shared: hold each prefix once; else every row gets a copy.

    Raises:
        ValueError: mlx_lm cannot batch this model's caches.
    """
    if shared:
        layers = len(model.layers)
        return [SharedKVCache([prefix[layer] if prefix else None for prefix in prefixes]) for layer in range(layers)]
    from mlx_lm.generate import _merge_caches  # private; see "Patches" in docs/choices.md

    return _merge_caches([prefix if prefix is not None else make_prompt_cache(model) for prefix in prefixes])


def extend(caches: list[Any], others: list[Any]) -> list[Any]:
    """The caches of both batches together; `caches` may be empty, for a batch without rows."""
    if not caches:
        return others
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)
    return caches


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
