"""Decoding: the sequences whose prompts are in the caches, one step for all of them at a time. On a CPU; `pipeline` has what
GPUs need.

A step feeds the model what each sequence has pending and chooses one token for each. Where grammars dictate several
tokens to many sequences at once, one step feeds several tokens of each, padded where a sequence has fewer.
"""

from __future__ import annotations

import time
from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.choosing import Chooser
from dspy_toolkit.lm.engine.masks import Masks, likeliest
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.tallies import needs_tally
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.protocol import TokenLogprob


@dataclass
class Steps:
    """What the steps took together."""

    steps: int = 0
    batched_rows: int = 0
    """Rows of all steps."""
    seconds: float = 0.0
    model_seconds: float = 0.0
    """Of these, inside the model."""


class Decoding:
    """Sequences that are decoded together, row by row of the caches. For the engine's thread only."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: str, fill: float) -> None:
        """Args:
        device: `metal`, `cuda` or `cpu`.
        fill: of the rules.
        """
        self.sequences: list[Sequence] = []
        self.caches: list[Any] = []
        self.counts = Steps()
        self._model, self._text, self._fill = model, tokenizer.token_text, fill
        self._masks = Masks(device, tokenizer.vocabulary)
        self._chooser = Chooser(self._masks)

    def join(self, sequences: abc.Sequence[Sequence], caches: list[Any]) -> None:
        """Add sequences whose prompts are in `caches`, but for the pending last token."""
        from dspy_toolkit.lm.engine.caches import extend

        self.sequences.extend(sequences)
        self.caches = extend(self.caches, caches)

    def keep(self, rows: abc.Sequence[int]) -> None:
        """Drop all sequences but those in some rows of the batch."""
        from dspy_toolkit.lm.engine.caches import keep_rows

        self.sequences = [self.sequences[row] for row in rows]
        self.caches = keep_rows(self.caches, rows)

    def settle(self) -> list[tuple[Sequence, Outcome]]:
        """Have nothing under way, so that the sequences can go on elsewhere; those that ended by it, with why."""
        return []

    def step(self) -> list[tuple[Sequence, Outcome]]:
        """Feed what is pending and choose a token where nothing is left; the sequences that ended, with why."""
        began = time.perf_counter()
        logits, ready = self._feed()
        seconds = time.perf_counter() - began
        chosen, waited = self._choose(logits, ready)
        over = self._take(chosen)
        self.counts.model_seconds += seconds + waited
        self.counts.seconds += time.perf_counter() - began
        return over

    def _take(self, chosen: abc.Iterable[tuple[Sequence, int, TokenLogprob | None]]) -> list[tuple[Sequence, Outcome]]:
        """Tell the sequences their tokens; those that ended leave."""
        over = []
        for sequence, token, logprob in chosen:
            outcome = sequence.take(token, logprob)
            if outcome is not None:
                over.append((sequence, outcome))
            elif sequence.pending_reply.read:
                sequence.stream()
        gone = {sequence for sequence, _ in over}
        if not gone.isdisjoint(self.sequences):
            self.keep([index for index, sequence in enumerate(self.sequences) if sequence not in gone])
        return over

    def _width(self) -> int:
        pending = [len(sequence.pending) for sequence in self.sequences]
        width = 1
        while sum(length > width for length in pending) >= self._fill * len(pending):
            width += 1
        return width

    def _feed(self) -> tuple[Any, list[Sequence]]:
        """(logits after what was fed, those that have nothing pending any more), a row each; no logits where nobody is ready.

        The device has begun; nothing is waited for.
        """
        import mlx.core as mx

        width = self._width()
        pieces = [sequence.pending[:width] for sequence in self.sequences]
        for sequence in self.sequences:
            sequence.pending = sequence.pending[width:]
        lengths = [len(piece) for piece in pieces]
        padding = [width - length for length in lengths]
        if any(padding):
            for cache in self.caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        logits = self._model(
            mx.array([piece + [0] * pad for piece, pad in zip(pieces, padding, strict=True)]), cache=self.caches
        )
        if any(padding):
            for cache in self.caches:
                cache.finalize()
        self.counts.steps += 1
        self.counts.batched_rows += len(self.sequences)
        logits = logits[:, 0] if width == 1 else logits[mx.arange(len(lengths)), mx.array(lengths) - 1]
        ready = [index for index, sequence in enumerate(self.sequences) if not sequence.pending]
        if len(ready) < len(self.sequences):
            logits = logits[mx.array(ready)] if ready else None
        # Started now, waited for later: the masks are made meanwhile.
        mx.async_eval([cache.state for cache in self.caches] if logits is None else logits)
        return logits, [self.sequences[index] for index in ready]

    def _bits(self, sequences: abc.Sequence[Sequence]) -> np.ndarray | None:
        """What the grammars of some sequences allow next; None without a grammar."""
        if all(sequence.matcher is None for sequence in sequences):
            return None
        return self._masks.fill([sequence.matcher for sequence in sequences])

    def _choose(
        self, logits: Any, ready: abc.Sequence[Sequence]
    ) -> tuple[list[tuple[Sequence, int, TokenLogprob | None]], float]:
        """((sequence, token, its log-probability if asked for) of each ready row, seconds of waiting for the model)."""
        if logits is None:
            return [], _wait([cache.state for cache in self.caches])
        bits = self._bits(ready)
        waited = _wait(logits)
        if all(_plain(sequence) for sequence in ready):
            tokens = likeliest(np.array(logits, copy=False), bits)
            return [(sequence, token, None) for sequence, token in zip(ready, tokens, strict=True)], waited
        return self._chooser.choose(logits, ready, bits).read(self._text), waited


def _wait(*arrays: Any) -> float:
    """Seconds until these are computed."""
    import mlx.core as mx

    began = time.perf_counter()
    mx.eval(*arrays)
    return time.perf_counter() - began


def _plain(sequence: Sequence) -> bool:
    """Whether the likeliest token is all that is asked for."""
    request = sequence.request
    asks = request.repetition_penalty != 1 or request.logprobs is not None or needs_tally(sequence)
    return request.temperature == 0 and not asks
