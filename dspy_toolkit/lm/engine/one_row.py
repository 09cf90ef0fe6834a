"""Choosing a token from one row of logits, in NumPy, for the engines that answer `one_by_one`.

The order is the MLX engine's: the penalties, the grammar, then top_p, min_p and top_k on the probabilities
before the temperature, then the draw. A seed makes draws reproducible here; the MLX engine's generator draws others
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dspy_toolkit.lm.protocol import GenerationRequest, TokenLogprob


class Sampler:
    """Chooses the tokens of one request; holds its random state."""

    def __init__(
        self, request: GenerationRequest, decode: Callable[[Sequence[int]], str], seed: int | None = None
    ) -> None:
        """Args: decode: tokens → text, for log-probabilities; seed: of the draws; by default the request's."""
        self._request, self._decode = request, decode
        seed = request.seed if seed is None else seed
        self._random = np.random.default_rng(None if seed is None else seed % 2**64)

    def choose(
        self, logits: np.ndarray, allowed: np.ndarray | None, context: np.ndarray, prompt_size: int = 0
    ) -> tuple[int, TokenLogprob | None]:
        """(token, its log-probability if the request asks for it).

        Args:
            logits: float32 of shape (vocabulary,); it is not changed.
            allowed: what the grammar allows, bool of the same shape; None: everything.
            context: the tokens of prompt and reply, for the penalties; prompt_size: of these, the prompt's.
        """
        if self._request.repetition_penalty != 1:
            logits = _penalize(logits, np.unique(context), self._request.repetition_penalty)
        logits = _tally(logits, context[prompt_size:], self._request)
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        token = int(np.argmax(logits)) if self._request.temperature == 0 else self._draw(_normalize(logits))
        if self._request.logprobs is None:
            return token, None
        return token, self._describe(_normalize(logits), token, self._request.logprobs)

    def _draw(self, logprobs: np.ndarray) -> int:
        kept = keep_likely(logprobs, self._request.top_p, self._request.min_p, self._request.top_k)
        probabilities = np.exp(_normalize(kept.astype(np.float64) / self._request.temperature))
        # One uniform number a token, so that what a seed draws does not depend on the vocabulary's tail.
        reached = np.cumsum(probabilities)
        return int(np.searchsorted(reached, self._random.random() * reached[-1], side="right"))

    def _describe(self, logprobs: np.ndarray, token: int, alternatives: int) -> TokenLogprob:
        best = np.argsort(-logprobs, kind="stable")[:alternatives]
        top = tuple((self._decode([int(each)]), float(logprobs[each])) for each in best if np.isfinite(logprobs[each]))
        return TokenLogprob(token=self._decode([token]), logprob=float(logprobs[token]), top=top)


def keep_likely(logprobs: np.ndarray, top_p: float, min_p: float, top_k: int) -> np.ndarray:
    """`logprobs` with minus infinity for what the three filters drop; the likeliest token always stays.

    Args:
        logprobs: normalized, shape (vocabulary,).
        top_p: keep the fewest likeliest tokens that hold this much probability; 1 keeps all.
        min_p: keep tokens at least this probable, relative to the likeliest; 0 keeps all.
        top_k: keep this many likeliest; 0 keeps all.
    """
    best = logprobs.max()
    floor = -np.inf
    if top_p < 1:
        descending = np.sort(logprobs)[::-1]
        before = np.cumsum(np.exp(descending)) - np.exp(descending)
        floor = descending[max(int((before < top_p).sum()), 1) - 1]
    if min_p > 0:
        floor = max(floor, best + np.log(min_p))
    if 0 < top_k < len(logprobs):
        floor = max(floor, np.partition(logprobs, -top_k)[-top_k])
    return np.where(logprobs < min(floor, best), -np.inf, logprobs)


def _normalize(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _tally(logits: np.ndarray, reply: np.ndarray, request: GenerationRequest) -> np.ndarray:
    """As `engine.tallies`: presence and frequency penalties, and logit bias."""
    if not (request.presence_penalty or request.frequency_penalty or request.logit_bias):
        return logits
    changed = logits.copy()
    tokens, counts = np.unique(reply, return_counts=True)
    changed[tokens] -= request.frequency_penalty * counts + request.presence_penalty
    for token, value in request.logit_bias:
        changed[token] += value
    return changed


def _penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    changed = logits.copy()
    values = changed[seen]
    changed[seen] = np.where(values < 0, values * penalty, values / penalty)
    return changed
