"""A prefix that is read once for all rows gives them what a copy of it gives each."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

TOLERANCE = {"float32": 2e-5, "bfloat16": 5e-2}


def alone(q: Any, k: Any, v: Any, cache: Any, scale: float, mask: Any, sinks: Any = None) -> Any:
    import mlx.core as mx

    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", ["none", "causal", "padded"])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("groups", [1, 3, 9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_see_what_they_see_with_copies(dtype: str, groups: int, length: int, mask: str, sinks: bool) -> None:
    """Two rows of one prefix, one without any, two of another, longer one."""
    import mlx.core as mx

    from dspy_toolkit.lm.models.shared_attention import attend

    kind, heads, seen, width = getattr(mx, dtype), 9, 6, 16
    keys = iter(mx.random.split(mx.random.key(groups), 12))

    def random(*shape: int) -> Any:
        return mx.random.normal(shape, key=next(keys)).astype(kind)

    q = random(5, heads, length, width)
    k, v = random(5, groups, seen, width), random(5, groups, seen, width)
    prefixes = [SimpleNamespace(keys=random(1, groups, n, width), values=random(1, groups, n, width)) for n in (7, 40)]
    cache = SimpleNamespace(runs=[(prefixes[0], slice(0, 2)), (None, slice(2, 3)), (prefixes[1], slice(3, 5))])
    sink = random(heads) if sinks else None
    visible = mx.arange(seen - length, seen)[:, None] >= mx.arange(seen)[None]
    visible = mx.broadcast_to(visible[None, None], (5, 1, length, seen))
    if mask == "padded":  # the rows' own tokens begin at different places
        visible = visible & (mx.arange(seen) >= mx.array([0, 1, 2, 0, 2])[:, None, None, None])
    if mask == "none" and length > 1:
        visible = mx.ones(visible.shape, dtype=mx.bool_)
    given: Any = {"none": None, "causal": "causal", "padded": visible}[mask]
    scale = 1 / math.sqrt(width)
    ours = attend(alone, q, k, v, cache, scale, given, sink)
    assert ours.dtype == kind and ours.shape == (5, heads, length, width)
    for row, prefix in enumerate([prefixes[0], prefixes[0], None, prefixes[1], prefixes[1]]):
        own = [part[row : row + 1] for part in (k, v)]
        whole = (
            own
            if prefix is None
            else [mx.concatenate(p, axis=2) for p in zip((prefix.keys, prefix.values), own, strict=True)]
        )
        before = whole[0].shape[2] - seen
        sees = mx.concatenate([mx.ones((1, 1, length, before), dtype=mx.bool_), visible[row : row + 1]], axis=-1)
        q32, k32, v32 = (part.astype(mx.float32) for part in (q[row : row + 1], *whole))
        expected = alone(q32, k32, v32, None, scale, sees, None if sink is None else sink.astype(mx.float32))
        assert mx.abs(ours[row].astype(mx.float32) - expected[0]).max().item() < TOLERANCE[dtype]


def test_far_scores_do_not_overflow() -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.models.shared_attention import attend

    q = mx.full((2, 1, 1, 4), 300.0)
    k, v = mx.full((2, 1, 3, 4), -1.0), mx.ones((2, 1, 3, 4))
    prefix = SimpleNamespace(keys=mx.full((1, 1, 5, 4), 1.0), values=mx.full((1, 1, 5, 4), 7.0))
    found = attend(alone, q, k, v, SimpleNamespace(runs=[(prefix, slice(0, 2))]), 1.0, None)
    assert mx.allclose(found, mx.full((2, 1, 1, 4), 7.0)).item()


def test_the_rule_is_measured() -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.models.shared_attention import LENGTHS, pays_from

    assert pays_from(4, 2, 16, mx.float32) in (*LENGTHS, math.inf)
