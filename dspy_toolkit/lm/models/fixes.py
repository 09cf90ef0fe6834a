"""What mlx_lm's models need to be computed in batches, where they do not do so by themselves. See "Patches" in docs/choices.md."""

from __future__ import annotations

import sys
from typing import Any


def install(model: Any) -> None:
    """Correct a loaded model in place; most need nothing.

    Gemma 2 groups the heads that share keys, and lays the mask of a batch, shape (rows, 1, length, seen), over scores of shape
    (rows, groups, heads of a group, length, seen): with more than one row that is an error, or worse, another row's mask.
    """
    if type(model).__module__ != "mlx_lm.models.gemma2":
        return
    gemma2: Any = sys.modules[type(model).__module__]

    class GroupedMask(gemma2.Attention):
        def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
            grouped = self.repeats > 1 and getattr(mask, "ndim", 0) == 4
            return super().__call__(x, mask[:, :, None] if grouped else mask, cache)

    for layer in model.layers:
        if type(layer.self_attn) is gemma2.Attention:
            layer.self_attn.__class__ = GroupedMask
