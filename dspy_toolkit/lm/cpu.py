"""Softmax and SiLU on the CPU, where MLX computes `exp` one element at a time.

MLX takes 13 to 25 ns for an exponential on a CPU without Accelerate, NumPy under 1 ns. In a 135M model those two functions
then cost more than all matrix products together. `install` gives a loaded model's module versions that go through NumPy:
the same numbers up to float rounding. It concerns the process: a second model of the same architecture has them too.

Not covered: gradients (a model that is trained must not be installed), quantized caches and attention sinks, which go
MLX's own way.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

HIDDEN = -1e30
"""Stands for minus infinity: a row that may see nothing gets a mean and not NaN, as in MLX's own attention."""


def install(model: Any) -> None:
    """Replace both functions in the module that defines `model`, where they are there. Twice is once."""
    module = sys.modules[type(model).__module__]
    if hasattr(module, "swiglu"):
        module.swiglu = swiglu  # pyright: ignore[reportAttributeAccessIssue]
    original = getattr(module, "scaled_dot_product_attention", None)
    if original is not None and getattr(original, "through_numpy", False) is False:
        module.scaled_dot_product_attention = make_attention(original)  # pyright: ignore[reportAttributeAccessIssue]


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
    """Attention with mlx_lm's signature; what it does not cover goes to `original`."""

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None, **more: Any
    ) -> Any:
        import mlx.core as mx

        if hasattr(cache, "bits") or sinks is not None or queries.dtype != mx.float32 or more:
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks, **more)
        batch, heads, length, width = queries.shape
        groups, seen = keys.shape[1], keys.shape[2]
        # Heads that share keys side by side, so that one product serves them.
        grouped = (queries * scale).reshape(batch, groups, heads // groups, length, width)
        scores = grouped @ keys[:, :, None].swapaxes(-1, -2)
        if mask is not None:
            scores = _masked(scores, mask, length, seen)
        weights = np.array(scores, copy=False)
        weights = weights - weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        return (mx.array(weights) @ values[:, :, None]).reshape(batch, heads, length, values.shape[-1])

    attention.through_numpy = True  # pyright: ignore[reportFunctionMemberAccess]
    return attention


def _masked(scores: Any, mask: Any, length: int, seen: int) -> Any:
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
