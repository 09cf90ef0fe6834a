"""Prompt caches in fewer bits: how a prefix is kept where `lm.kv_bits` asks for it.

`pack` copies a computed cache with 4 or 8 bits a number, `unpack` makes one that sequences can start from. mlx_lm
cannot batch quantized caches, so only what is kept between requests is packed; the running sequences' own caches are as
the model computed them. With 8 bits a prefix takes about 28 % of its bytes in float32 and 53 % of those in 16 bits;
with 4 bits a little more than half of that.

Not covered: caches that do not grow with the tokens, sliding windows, and heads whose width no group size divides;
those layers are copied unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

GROUP_SIZES = (64, 32)
"""Numbers that share a scale and an offset; the larger takes fewer bytes."""


def pack(cache: Sequence[Any], bits: int) -> list[Any]:
    """A copy of a prompt cache, quantized where it can be. On the thread that computed it.

    Args:
        cache: layers of `mlx_lm.models.cache.make_prompt_cache`, evaluated.
        bits: 4 or 8.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    packed = []
    for layer in cache:
        # By type, not by `to_quantized`: a rotating cache has one that does nothing but raise.
        group = _group_size(layer) if type(layer) is KVCache else None
        if group is None:
            packed.append(copy.deepcopy(layer))
            continue
        whole = KVCache()
        whole.state = (*layer.keys_and_values(), layer.offset)  # without the room for tokens to come
        packed.append(whole.to_quantized(group_size=group, bits=bits))
    mx.eval([layer.state for layer in packed])
    return packed


def unpack(packed: Sequence[Any]) -> list[Any]:
    """A new prompt cache from what `pack` made, which is not changed."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    cache = []
    for layer in packed:
        if not isinstance(layer, QuantizedKVCache):
            cache.append(copy.deepcopy(layer))
            continue
        restored = KVCache()
        parts: Any = layer.keys_and_values()  # (numbers, scales, offsets) of the keys, then of the values
        keys, values = (mx.dequantize(*part, group_size=layer.group_size, bits=layer.bits) for part in parts)
        restored.state = (keys, values, layer.offset)
        cache.append(restored)
    return cache


def _group_size(layer: Any) -> int | None:
    if layer.keys is None:
        return None
    widths = (layer.keys.shape[-1], layer.values.shape[-1])
    return next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), None)
