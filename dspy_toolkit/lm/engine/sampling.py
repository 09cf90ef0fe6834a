"""How the next token of one sequence is chosen: filters, temperature, the repetition penalty, and its log-probability.

The filters and the penalty are mlx_lm's own. Added are a random state for each sequence, so that its draws depend on
its seed and not on its neighbours, and log-probabilities. All of it runs on the engine's thread.

Order, as in mlx_lm: penalty and grammar on the logits, then top-p, min-p and top-k on the log-probabilities, then the
temperature. Not covered: presence and frequency penalties, logit bias, XTC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy_toolkit.lm.protocol import GenerationRequest

if TYPE_CHECKING:
    import mlx.core as mx

ALL_TOKENS = 2**31 - 1
"""A window of the repetition penalty that no context is longer than."""


def make_sampler(request: GenerationRequest, seed: int) -> Callable[[mx.array], mx.array] | None:
    """A sampler of mlx_lm with a random state of its own; None for a greedy request.

    Args:
        seed: the same seed gives the same draws from the same log-probabilities. Non-negative, below 2**64.

    Returns:
        A function of log-probabilities, shape (1, vocabulary), that gives a token, shape (1,).
    """
    if request.temperature == 0:
        return None
    import mlx.core as mx

    key, filters, temperature = mx.random.key(seed), _filters(request), request.temperature

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        for keep in filters:
            logprobs = keep(logprobs)
        return mx.random.categorical(logprobs / temperature, key=now)

    return sample


def _filters(request: GenerationRequest) -> list[Callable[[Any], Any]]:
    """What sets the log-probabilities of some tokens to minus infinity; the likeliest token always stays."""
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    filters: list[Callable[[Any], Any]] = []
    if request.top_p < 1:
        filters.append(lambda logprobs: apply_top_p(logprobs, request.top_p))
    if request.min_p > 0:
        filters.append(lambda logprobs: apply_min_p(logprobs, request.min_p))
    if request.top_k > 0:
        # mlx_lm refuses a number that would keep everything.
        filters.append(lambda x: apply_top_k(x, request.top_k) if request.top_k < x.shape[-1] else x)
    return filters


def make_penalty(request: GenerationRequest) -> Callable[[mx.array, mx.array], mx.array] | None:
    """A logits processor of mlx_lm that penalizes every token of prompt and reply; None where nothing is to be
    penalized.

    Returns:
        A function of the sequence's tokens so far, shape (n,), and the logits, shape (1, vocabulary), which it may
        change in place; it gives the logits to go on with.
    """
    if request.repetition_penalty == 1:
        return None
    from mlx_lm.sample_utils import make_repetition_penalty

    return make_repetition_penalty(request.repetition_penalty, ALL_TOKENS)


def top_logprobs(logprobs: Any, token: int, k: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token`, and the `k` likeliest tokens with theirs, best first.

    Tokens that the grammar forbids are not among them, so there may be fewer than `k`.

    Args:
        logprobs: shape (vocabulary,) or (1, vocabulary), natural logarithms.
    """
    import mlx.core as mx

    logprobs = logprobs.reshape(-1).astype(mx.float32)
    chosen = float(logprobs[token].item())
    k = min(k, logprobs.size)
    if k == 0:
        return chosen, []
    best: Any = mx.argpartition(-logprobs, kth=k - 1)[:k] if k < logprobs.size else mx.arange(k)
    pairs = zip(best.tolist(), logprobs[best].tolist(), strict=True)
    allowed = [(int(index), float(value)) for index, value in pairs if value > float("-inf")]
    return chosen, sorted(allowed, key=lambda pair: (-pair[1], pair[0]))
