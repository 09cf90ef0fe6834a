"""A kept prefix in fewer bits starts a row as the whole one does, nearly."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, QuantizedKVCache, RotatingKVCache

from dspy_toolkit.lm.engine.quantized import pack, unpack

TOKENS = 300


def cache_of(kind: Any = KVCache, width: int = 64, dtype: Any = mx.float32) -> Any:
    cache = kind() if kind is KVCache else kind(max_size=512)
    mx.random.seed(0)
    cache.update_and_fetch(
        mx.random.normal((1, 3, TOKENS, width)).astype(dtype), mx.random.normal((1, 3, TOKENS, width)).astype(dtype)
    )
    return cache


@pytest.mark.parametrize(("bits", "far"), [(8, 0.05), (4, 0.5)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_comes_back_is_nearly_what_was_kept(bits: int, far: float, dtype: Any) -> None:
    whole = cache_of(dtype=dtype)
    packed = pack([whole], bits)
    (back,) = unpack(packed)
    assert back.offset == whole.offset == TOKENS
    for ours, theirs in zip(back.keys_and_values(), whole.keys_and_values(), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert mx.abs(ours - theirs).max().item() < far
    # Scales and offsets are in the numbers' own type, one of each for 64 numbers.
    size = 8 * dtype.size
    exact = (bits + 2 * size / 64) / size * 2 * 3 * TOKENS * 64 * dtype.size
    assert packed[0].nbytes == exact


def test_a_row_changes_neither_what_is_kept_nor_its_source() -> None:
    whole = cache_of()
    before = mx.array(whole.keys)
    packed = pack([whole], 8)
    first, second = unpack(packed)[0], unpack(packed)[0]
    first.update_and_fetch(mx.ones((1, 3, 5, 64)), mx.ones((1, 3, 5, 64)))
    assert (first.offset, second.offset, packed[0].offset, whole.offset) == (TOKENS + 5, TOKENS, TOKENS, TOKENS)
    assert mx.array_equal(whole.keys, before).item()
    whole.update_and_fetch(mx.ones((1, 3, 5, 64)), mx.ones((1, 3, 5, 64)))
    assert packed[0].keys_and_values()[0][0].shape[2] == TOKENS


def test_rows_from_it_can_be_batched() -> None:
    packed = pack([cache_of()], 8)
    rows = [unpack(packed)[0] for _ in range(3)]
    assert KVCache.merge(rows).keys.shape[0] == 3


def test_a_narrow_head_takes_a_smaller_group_and_an_odd_one_is_kept() -> None:
    narrow, odd = pack([cache_of(width=96), cache_of(width=20)], 8)
    assert isinstance(narrow, QuantizedKVCache) and narrow.group_size == 32
    assert type(odd) is KVCache
    assert [layer.offset for layer in unpack([narrow, odd])] == [TOKENS, TOKENS]


def test_other_caches_are_kept_as_they_are() -> None:
    state = ArraysCache(2)
    state[0] = mx.ones((1, 4))
    originals = [cache_of(RotatingKVCache), state, KVCache()]
    packed = pack(originals, 4)
    back = unpack(packed)
    assert (
        [type(layer) for layer in packed] == [type(layer) for layer in back] == [RotatingKVCache, ArraysCache, KVCache]
    )
    assert all(a is not b and b is not c for a, b, c in zip(originals, packed, back, strict=True))
    assert mx.array_equal(back[0].keys, originals[0].keys).item()
