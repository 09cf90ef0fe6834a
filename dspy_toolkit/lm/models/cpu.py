"""Softmax and SiLU on the CPU, where MLX computes `exp` one element at a time.

On a CPU without Accelerate, MLX takes 13 to 25 ns for an exponential and NumPy less than 1 ns. In a 135M model these
two functions then cost more than all matrix products together. `install` puts versions that use NumPy into the module
of a loaded model: the same numbers up to rounding, for every model of that architecture in the process (see "Patches"
in docs/choices.md). Attention also reads `caches.SharedKVCache`: rows that start from one prefix read its keys and
values once, together. On a GPU the same function does no more than that, in MLX's operations (`shared_attention`).

Not covered: gradients (do not train a model with it). Quantized caches and attention sinks are left to MLX.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dspy_toolkit.lm.models import shared_attention

_elsewhere = threading.local()


@contextmanager
def leave_to_mlx(leave: bool = True) -> Iterator[None]:
    """Inside, on this thread, everything is computed by MLX: for a GPU's ways on a CPU, beside a model that has these."""
    before = not through_numpy()
    _elsewhere.on = leave
    try:
        yield
    finally:
        _elsewhere.on = before


def through_numpy() -> bool:
    """Whether NumPy computes on this thread."""
    return not getattr(_elsewhere, "on", False)


def install(model: Any) -> bool:
    """Replace both functions in the module that defines `model`, if it has them. Doing it twice changes nothing more.

    Returns:
        Whether the model's attention is now ours, so that its caches can be `SharedKVCache`s.
    """
    module = sys.modules[type(model).__module__]
    for name, make in (("swiglu", make_swiglu), ("scaled_dot_product_attention", make_attention)):
        original = getattr(module, name, None)
        if original is not None and not hasattr(original, "instead_of"):
            replacement = make(original)
            replacement.instead_of = original
            setattr(module, name, replacement)
    return hasattr(module, "scaled_dot_product_attention")


def make_swiglu(original: Any) -> Any:
    """SwiGLU with mlx_lm's signature; what is not float32 is left to `original`."""

    def either(gate: Any, x: Any) -> Any:
        import mlx.core as mx

        return swiglu(gate, x) if gate.dtype == mx.float32 and through_numpy() else original(gate, x)

    return either


def swiglu(gate: Any, x: Any) -> Any:
    """`silu(gate) * x`, both float32 of one shape."""
    import mlx.core as mx

    values = np.array(gate, copy=False)
    # exp overflows to infinity for very negative gates, and x / inf is the 0 that is meant.
    with np.errstate(over="ignore"):
        out = np.exp(-values)
    out += 1
    np.divide(values, out, out=out)
    return mx.array(out) * x


def make_attention(original: Any) -> Any:
    """Attention with mlx_lm's signature; what it does not cover is left to `original`."""

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None, **more: Any
    ) -> Any:
        import mlx.core as mx

        if hasattr(cache, "bits") or sinks is not None or queries.dtype != mx.float32 or more or not through_numpy():
            if any(prefix is not None for prefix, _ in getattr(cache, "runs", ())):
                return shared_attention.attend(original, queries, keys, values, cache, scale, mask, sinks, **more)
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks, **more)
        batch, heads, length, width = queries.shape
        groups, seen = keys.shape[1], keys.shape[2]
        # Heads that share keys side by side, so that one product serves them.
        grouped = (queries * scale).reshape(batch, groups, heads // groups, length, width)
        scores = _per_group(grouped, keys.swapaxes(-1, -2))
        if mask is not None:
            scores = shared_attention.masked(scores, mask, length, seen)
        runs = getattr(cache, "runs", None) or [(None, slice(0, batch))]
        outs = [_attend(grouped[rows], scores[rows], values[rows], prefix) for prefix, rows in runs]
        out = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        return out.reshape(batch, heads, length, values.shape[-1])

    return attention


def _attend(queries: Any, scores: Any, values: Any, prefix: Any) -> Any:
    """The attention of some rows to their own keys, and to those of the prefix that they all start from.

    Args:
        queries: scaled, shape (rows, groups, heads of a group, length, width).
        scores: of the rows' own keys, masked, shape (rows, groups, heads of a group, length, seen).
        values: the rows' own, shape (rows, groups, seen, width).
        prefix: a cache of one row, or None.

    Returns:
        Shape (rows, groups, heads of a group, length, width).
    """
    import mlx.core as mx

    own = np.array(scores, copy=False)
    if prefix is None:
        own = own - own.max(axis=-1, keepdims=True)
        np.exp(own, out=own)
        own /= own.sum(axis=-1, keepdims=True)
        return _per_group(mx.array(own), values)
    rows, groups, heads, length, width = queries.shape
    # The rows' queries side by side, so that one product reads the prefix once for all of them.
    side_by_side = queries.transpose(1, 0, 2, 3, 4).reshape(groups, -1, width)
    before = np.array(side_by_side @ prefix.keys[0].swapaxes(-1, -2), copy=False)
    before = before.reshape(groups, rows, heads, length, -1).transpose(1, 0, 2, 3, 4)
    top = np.maximum(own.max(axis=-1, keepdims=True), before.max(axis=-1, keepdims=True))
    own, before = own - top, before - top
    np.exp(own, out=own)
    np.exp(before, out=before)
    total = own.sum(axis=-1, keepdims=True) + before.sum(axis=-1, keepdims=True)
    before = before.transpose(1, 0, 2, 3, 4).reshape(groups, rows * heads * length, -1)
    from_prefix = (mx.array(before) @ prefix.values[0]).reshape(groups, rows, heads, length, -1)
    out = _per_group(mx.array(own), values) + from_prefix.transpose(1, 0, 2, 3, 4)
    return out / mx.array(total)


def _per_group(x: Any, shared: Any) -> Any:
    """`x` of shape (rows, groups, heads of a group, length, a) times `shared` of (rows, groups, a, b), which the heads share.

    One product a group: MLX calls the BLAS once for each, which with many short rows costs more than the sums. But of one
    token a row MLX multiplies vectors by itself.
    """
    rows, groups, heads, length, width = x.shape
    if length == 1:
        return x @ shared[:, :, None]
    return (x.reshape(rows, groups, heads * length, width) @ shared).reshape(rows, groups, heads, length, -1)
