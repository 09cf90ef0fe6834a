"""Presence and frequency penalties, and logit bias: what is added to the logits of the rows of a batch, on the device.

As OpenAI defines them: a token that a reply has `n` times loses `n` times the frequency penalty, and the presence penalty once;
tokens of the prompt do not count. The repetition penalty, which counts them, is `choosing`'s.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.sequence import Sequence


def needs_tally(sequence: Sequence) -> bool:
    """Whether its request asks for any of them."""
    request = sequence.request
    return bool(request.presence_penalty or request.frequency_penalty or request.logit_bias)


class Tallies:
    """How often each reply of a batch has each token. For the engine's thread only."""

    def __init__(self, sequences: Rows[Sequence]) -> None:
        """Args: sequences: one a row; those that ask for nothing are left as they are."""
        self._sequences = list(sequences)
        self._noted = [0] * len(self._sequences)
        """Tokens of each reply that are counted."""
        self._counts: Any = None
        self._bias: Any = None

    def apply(self, logits: Any, ahead: Any = None) -> Any:
        """The logits, float32 of shape (rows, vocabulary), with what is asked for.

        Args:
            ahead: shape (rows,), the token that each row was fed last, where its sequence has not been told it yet.
        """
        import mlx.core as mx

        if self._counts is None:
            self._begin(logits.shape)
            self._count_new()
        if ahead is not None:
            before: Any = self._counts
            self._counts = before.at[mx.arange(len(self._sequences)), ahead].add(1.0)
            self._noted = [noted + 1 for noted in self._noted]
        else:
            self._count_new()
        requests = [sequence.request for sequence in self._sequences]
        presence = mx.array([request.presence_penalty for request in requests])[:, None]
        frequency = mx.array([request.frequency_penalty for request in requests])[:, None]
        counts: Any = self._counts
        return logits - frequency * counts - presence * (counts > 0) + self._bias

    def _begin(self, shape: tuple[int, int]) -> None:
        import mlx.core as mx

        bias = np.zeros(shape, dtype=np.float32)
        for row, sequence in zip(bias, self._sequences, strict=True):
            for token, value in sequence.request.logit_bias:
                row[token] = value
        self._bias, self._counts = mx.array(bias), mx.zeros(shape)

    def _count_new(self) -> None:
        import mlx.core as mx

        new = [
            (row, token)
            for row, (sequence, noted) in enumerate(zip(self._sequences, self._noted, strict=True))
            for token in sequence.reply[noted:]
        ]
        self._noted = [len(sequence.reply) for sequence in self._sequences]
        if new:
            rows, tokens = (mx.array(list(each)) for each in zip(*new, strict=True))
            self._counts = self._counts.at[rows, tokens].add(1.0)
