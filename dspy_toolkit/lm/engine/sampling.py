"""How the next tokens of some rows are drawn: filters, temperature, and noise that belongs to a seed and a place.

All rows are drawn in one graph, on the device, in float32. A row's noise hangs on its seed and on how long its reply is,
and on nothing else: neither on its neighbours nor on how often it was paused.

Order, as in mlx_lm: penalties and grammar on the logits (`choosing`), then top-p, min-p and top-k on the
log-probabilities, then the temperature. Tokens exactly as likely as the last that a filter keeps stay with it. Not covered:
XTC.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dspy_toolkit.lm.protocol import GenerationRequest

if TYPE_CHECKING:
    import mlx.core as mx

SEEDS = 2**32
"""What seeds are taken modulo."""
Field: TypeAlias = Literal["temperature", "top_p", "min_p", "top_k"]


def seed_of(seed: int | None, prompt: np.ndarray) -> int:
    """The seed of one reply's noise, below SEEDS: two prompts that are asked with one seed draw apart.

    Args:
        seed: as asked for; None: another one each time.
        prompt: tokens.
    """
    if seed is None:
        return secrets.randbelow(SEEDS)
    return zlib.crc32(np.ascontiguousarray(prompt, dtype=np.int64).tobytes(), seed % SEEDS)


class Draws:
    """How the tokens of some rows are drawn."""

    def __init__(self, requests: Sequence[GenerationRequest], seeds: Sequence[int]) -> None:
        """Args: requests: one a row, with a temperature above 0; seeds: one a row, non-negative."""
        self._requests, self._seeds = requests, [seed % SEEDS for seed in seeds]
        self._temperature = self._column("temperature")
        self._filters = self._make_filters()

    def __call__(self, logprobs: mx.array, places: Sequence[int]) -> mx.array:
        """Draw a token of each row.

        Args:
            logprobs: float32, shape (rows, vocabulary), natural logarithms; minus infinity is never drawn.
            places: of each row, tokens of its reply so far. The same seed, place and log-probabilities give the same token.

        Returns:
            Shape (rows,).
        """
        import mlx.core as mx

        vocabulary = logprobs.shape[-1]
        keys = mx.array([list(pair) for pair in zip(self._seeds, places, strict=True)], dtype=mx.uint32)
        noise = mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)
        for keep in self._filters:
            logprobs = mx.where(keep(logprobs), logprobs, -mx.inf)
        return mx.argmax(logprobs / self._temperature + noise, axis=-1)

    def _column(self, name: Field) -> mx.array:
        import mlx.core as mx

        return mx.array([float(getattr(request, name)) for request in self._requests])[:, None]

    def _make_filters(self) -> list[Callable[[Any], Any]]:
        """What tells the tokens that may be drawn; the likeliest is always among them."""
        import mlx.core as mx

        filters: list[Callable[[Any], Any]] = []
        if any(request.top_p < 1 for request in self._requests):
            top_p = self._column("top_p")
            filters.append(lambda logprobs: keep_top_p(logprobs, top_p))
        if any(request.min_p > 0 for request in self._requests):
            least = mx.log(self._column("min_p"))
            filters.append(lambda logprobs: logprobs >= logprobs.max(axis=-1, keepdims=True) + least)
        if any(request.top_k > 0 for request in self._requests):
            counts = [request.top_k for request in self._requests]
            filters.append(lambda logprobs: keep_top_k(logprobs, counts))
        return filters


def keep_top_p(logprobs: mx.array, top_p: mx.array) -> mx.array:
    """Which tokens are among the fewest likeliest that hold a share `top_p`, shape (rows, 1), of the probability."""
    import mlx.core as mx

    ordered = mx.sort(logprobs, axis=-1)
    chances = mx.exp(ordered)
    above = mx.cumsum(chances, axis=-1, reverse=True, inclusive=False)
    total = above[:, :1] + chances[:, :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    # All of a row is kept where all is asked for: rounding could lose its unlikeliest tokens.
    return (logprobs >= mx.take_along_axis(ordered, dropped, axis=-1)) | (top_p >= 1)


def keep_top_k(logprobs: mx.array, counts: Sequence[int]) -> mx.array:
    """Which tokens are among as many likeliest as `counts` says of each row; 0: all."""
    import mlx.core as mx

    vocabulary = logprobs.shape[-1]
    counts = [min(count, vocabulary) or vocabulary for count in counts]
    most = max((count for count in counts if count < vocabulary), default=0)
    if most == 0:
        return mx.ones(logprobs.shape, dtype=mx.bool_)
    best = mx.sort(mx.topk(logprobs, most, axis=-1), axis=-1)
    last = mx.array([max(most - count, 0) for count in counts])[:, None]
    every = mx.array([count == vocabulary for count in counts])[:, None]
    return (logprobs >= mx.take_along_axis(best, last, axis=-1)) | every
