"""Attention of rows that start from one prefix, in MLX's operations: the prefix is read once for all of them.

    queries of all rows, side by side  ×  the prefix          one product a run of rows
    queries of each row                ×  its own keys        beside it
    both merged by the logarithms of their sums of exponentials

What a row sees is the same as if its keys began with a copy of the prefix (flash attention's merging of parts: Dao et al.
2022). Scores, exponentials and sums are in float32, products in the precision of the model. Grouped queries and attention
sinks are covered. Layers with a sliding window hold copies, since these are no longer than the window (`engine.caches`).

Sharing starts more and smaller kernels than MLX's fused attention over copies, so it pays from some length of the prefix on:
`pays_from` measures it on the device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

HIDDEN = -1e30
"""Stands for minus infinity: a row that may see nothing gets a mean and not NaN, as in MLX's own attention."""
ROWS = 8
"""Of a batch that `pays_from` measures."""
LENGTHS = (64, 256, 1024, 4096)
"""Tokens of a prefix that it measures."""
OWN = 64
"""A row's own tokens beside it."""
REPEATS = 5


def attend(
    original: Callable[..., Any],
    queries: Any,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: Any = None,
) -> Any:
    """The attention of a batch some of whose rows start from prefixes.

    Args:
        original: attention of mlx_lm's signature, for rows without a prefix.
        queries: shape (rows, heads, length, width).
        keys: the rows' own, shape (rows, groups, seen, width); values alike.
        cache: says which rows start from what, in `runs`.
        mask: over the rows' own keys, as mlx_lm has it.
        sinks: shape (heads,), or None.

    Returns:
        Shape (rows, heads, length, width).
    """
    import mlx.core as mx

    parts = []
    for prefix, rows in cache.runs:
        q, k, v = queries[rows], keys[rows], values[rows]
        own = mask if mask is None or isinstance(mask, str) or mask.shape[0] == 1 or mask.ndim < 4 else mask[rows]
        if prefix is None:
            parts.append(original(q, k, v, cache=cache, scale=scale, mask=own, sinks=sinks))
        else:
            parts.append(_merged(q, k, v, prefix.keys[0], prefix.values[0], scale, own, sinks))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def _merged(q: Any, keys: Any, values: Any, before: Any, said: Any, scale: float, mask: Any, sinks: Any) -> Any:
    """Args: before, said: the prefix's keys and values, shape (groups, tokens, width)."""
    import mlx.core as mx

    rows, heads, length, width = q.shape
    groups = keys.shape[1]
    each = heads // groups
    grouped = (q * scale).reshape(rows, groups, each * length, width)
    scores = (grouped @ keys.swapaxes(-1, -2)).astype(mx.float32).reshape(rows, groups, each, length, -1)
    if mask is not None:
        scores = masked(scores, mask, length, keys.shape[2])
    top, total, out = _part(scores.reshape(rows, groups, each * length, -1), values)
    side_by_side = grouped.transpose(1, 0, 2, 3).reshape(groups, -1, width)
    parts = _part((side_by_side @ before.swapaxes(-1, -2)).astype(mx.float32), said)
    top_before, total_before, out_before = (
        part.reshape(groups, rows, each * length, -1).transpose(1, 0, 2, 3) for part in parts
    )
    highest, sink = mx.maximum(top, top_before), None
    if sinks is not None:
        # A sink takes part of the probability and has no value: (heads,) as the rows' queries lie.
        sink = mx.repeat(sinks.astype(mx.float32).reshape(groups, each), length, axis=1)[None, :, :, None]
        highest = mx.maximum(highest, sink)
    own, other = mx.exp(top - highest), mx.exp(top_before - highest)
    sums = own * total + other * total_before
    if sink is not None:
        sums = sums + mx.exp(sink - highest)
    merged = (own * out + other * out_before) / sums
    return merged.astype(q.dtype).reshape(rows, heads, length, -1)


def _part(scores: Any, values: Any) -> tuple[Any, Any, Any]:
    """(highest score, sum of exponentials below it, values weighted by these) over some keys, in float32."""
    import mlx.core as mx

    top = scores.max(axis=-1, keepdims=True)
    weights = mx.exp(scores - top)
    return top, weights.sum(axis=-1, keepdims=True), (weights.astype(values.dtype) @ values).astype(mx.float32)


def masked(scores: Any, mask: Any, length: int, seen: int) -> Any:
    """`mask` over scores of shape (batch, groups, heads of a group, length, seen)."""
    import mlx.core as mx

    if isinstance(mask, str):  # "causal", the only name there is
        mask = mx.arange(seen - length, seen)[:, None] >= mx.arange(seen)[None]
    if mask.ndim == 4:
        # (batch, 1 or heads, length, seen)
        mask = (
            mask[:, :, None] if mask.shape[1] == 1 else mask.reshape(mask.shape[0], *scores.shape[1:3], *mask.shape[2:])
        )
    return mx.where(mask, scores, HIDDEN) if mask.dtype == mx.bool_ else scores + mask


def pays_from(heads: int, groups: int, width: int, dtype: Any) -> float:
    """Tokens of a prefix from which sharing is faster than copies, for a step of ROWS; infinity where it never is.

    Takes a fraction of a second: one layer's attention is timed on random numbers, in both ways. Where the longer of two
    prefixes is faster when shared, so is all that is longer still, since copies cost more with each token.
    """
    import mlx.core as mx

    class Cache:
        runs: Any = None

    def random(*shape: int) -> Any:
        return mx.random.normal(shape).astype(dtype)

    def fused(q: Any, k: Any, v: Any, scale: float, mask: Any = None, **more: Any) -> Any:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    queries, scale = random(ROWS, heads, 1, width), 1 / math.sqrt(width)
    own, cache = (random(ROWS, groups, OWN, width), random(ROWS, groups, OWN, width)), Cache()
    for length in LENGTHS:
        prefix = Cache()
        prefix.keys, prefix.values = random(1, groups, length, width), random(1, groups, length, width)  # pyright: ignore[reportAttributeAccessIssue]
        cache.runs = [(prefix, slice(0, ROWS))]
        copies = random(ROWS, groups, length + OWN, width), random(ROWS, groups, length + OWN, width)
        mx.eval(queries, own, prefix.keys, prefix.values, copies)  # pyright: ignore[reportAttributeAccessIssue]
        apart = _seconds(lambda copies=copies: fused(queries, *copies, scale=scale))
        if _seconds(lambda: attend(fused, queries, *own, cache, scale, None)) < apart:
            return length
    return math.inf


def _seconds(compute: Callable[[], Any]) -> float:
    """The median of some, the first of which compiles."""
    import mlx.core as mx

    took = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        mx.eval(compute())
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])
