"""From what length on a loaded model's prefixes are held once for all rows, on a GPU, instead of a copy a row.

Two things decide. Whether it is right: some models compute attention in a way of their own that knows nothing of
`SharedKVCache`, so the loaded model is asked a few tokens both ways, and must say the same. And whether it pays: that is
measured on the device (`models.shared_attention.pays_from`). Both take a moment while the model is loaded.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from dspy_toolkit.lm.models import cpu
from dspy_toolkit.lm.models.shared_attention import pays_from

log = logging.getLogger(__name__)

PROMPT, ROWS, NEXT = range(1, 10), ((11, 12), (13, 14), (11, 15)), ((16,), (17,), (18,))
"""Tokens of a prefix, of rows two of which start from it, and of their next step."""
NEAR = 0.25
"""Standard deviations of the logits between two ways of the same sums; in bf16 they differ by some hundredths."""


def share_from(model: Any) -> float:
    """Tokens of a prefix from which it is held once; infinity where it never is. On the engine's thread."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    caches = make_prompt_cache(model)
    plain = [cache for cache in caches if type(cache) is KVCache]
    if not plain or not all(hasattr(cache, "merge") for cache in caches) or not cpu.install(model):
        return math.inf
    if not agrees(model):
        log.info("%s has attention of its own: each row starts from a copy of its prefix.", type(model).__module__)
        return math.inf
    model(mx.array([[0]]), cache=caches)
    keys: Any = plain[0].keys
    groups, width = keys.shape[1], keys.shape[3]
    heads = getattr(getattr(model, "args", None), "num_attention_heads", None) or groups
    return pays_from(heads - heads % groups, groups, width, keys.dtype)


def agrees(model: Any) -> bool:
    """Whether the model says the same of rows that share a prefix and of rows that have copies."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from dspy_toolkit.lm.engine.caches import compact, start

    before = make_prompt_cache(model)
    model(mx.array([list(PROMPT)]), cache=before)
    prefix = compact(before)
    said = []
    for shared in (True, False):
        caches = start(model, [prefix, prefix, None], shared=shared)
        try:
            first = model(mx.array([list(row) for row in ROWS]), cache=caches)
            after = model(mx.array([list(row) for row in NEXT]), cache=caches)
        except (ValueError, TypeError, AttributeError, RuntimeError):
            return False  # of shapes that this model does not expect
        said.append(mx.concatenate([first, after], axis=1).astype(mx.float32))
    shared, copied = said
    return bool((mx.abs(shared - copied).max() <= NEAR * mx.sqrt(copied.var())).item())
