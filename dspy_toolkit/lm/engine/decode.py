"""Decoding: the sequences whose prompts are in the caches, one step for all of them at a time.

A step feeds the model what each sequence has pending and chooses one token for each. Where grammars dictate several
tokens to many sequences at once, one step feeds several tokens of each, padded where a sequence has fewer.
"""

from __future__ import annotations

import time
from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.masks import Masks, likeliest
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.protocol import TokenLogprob

FULL = 0.5
"""A step is one token wider while this share of the sequences has another token pending. A position more in a step then
costs less than the step that it saves: of sixteen sequences on two cores, half of a step's time goes into reading the
weights, whatever its width."""


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
    """Sequences that are decoded together, row by row of the caches."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: str) -> None:
        """Args: device: `metal`, `cuda` or `cpu`."""
        self.sequences: list[Sequence] = []
        self.caches: list[Any] = []
        self.counts = Steps()
        self._model, self._text = model, tokenizer.token_text
        self._masks = Masks(device, tokenizer.vocabulary)
        self._on_cpu = device == "cpu"

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

    def step(self) -> list[tuple[Sequence, Outcome]]:
        """Feed what is pending and choose a token where nothing is left; the sequences that ended, with why."""
        began = time.perf_counter()
        logits, ready = self._read()
        seconds = time.perf_counter() - began
        chosen, hidden = self._choose(logits, ready)
        seconds += hidden
        over = []
        for index, token, logprob in chosen:
            sequence = self.sequences[index]
            outcome = sequence.take(token, logprob)
            if outcome is not None:
                over.append((sequence, outcome))
            elif sequence.pending_reply.read:
                sequence.stream()
        self.counts.steps += 1
        self.counts.batched_rows += len(self.sequences)
        if over:
            gone = {sequence for sequence, _ in over}
            self.keep([index for index, sequence in enumerate(self.sequences) if sequence not in gone])
        self.counts.model_seconds += seconds
        self.counts.seconds += time.perf_counter() - began
        return over

    def _width(self) -> int:
        pending = [len(sequence.pending) for sequence in self.sequences]
        width = 1
        while sum(length > width for length in pending) >= FULL * len(pending):
            width += 1
        return width

    def _read(self) -> tuple[Any, list[int]]:
        """(logits after what was fed to each row, the rows that have nothing pending any more)."""
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
        logits = logits[:, 0] if width == 1 else logits[mx.arange(len(lengths)), mx.array(lengths) - 1]
        ready = [index for index, sequence in enumerate(self.sequences) if not sequence.pending]
        if len(ready) < len(self.sequences):
            logits = logits[mx.array(ready)] if ready else None
        if logits is None:
            mx.eval([cache.state for cache in self.caches])
        else:
            # Started now, waited for later: the masks are made meanwhile.
            mx.async_eval(logits)
        return logits, ready

    def _choose(
        self, logits: Any, ready: abc.Sequence[int]
    ) -> tuple[list[tuple[int, int, TokenLogprob | None]], float]:
        """((row, token, its log-probability if asked for) of each ready row, seconds of waiting for the model)."""
        import mlx.core as mx

        if logits is None:
            return [], 0.0
        sequences = [self.sequences[index] for index in ready]
        bits = None
        if any(sequence.matcher is not None for sequence in sequences):
            bits = self._masks.fill([sequence.matcher for sequence in sequences])
        # On a GPU the graph goes on to the tokens before anybody waits: a second wait would leave it idle in between.
        waited = _wait(logits) if self._on_cpu else 0.0
        if self._on_cpu and all(_plain(sequence) for sequence in sequences):
            tokens = likeliest(np.array(logits, copy=False), bits)
            return [(index, token, None) for index, token in zip(ready, tokens, strict=True)], waited
        if any(sequence.penalty is not None for sequence in sequences):
            logits = mx.concatenate(
                [_penalized(sequence, logits[at : at + 1]) for at, sequence in enumerate(sequences)]
            )
        if bits is not None:
            logits = self._masks.apply(logits, bits)
        tokens = mx.argmax(logits, axis=-1)
        drawn = {
            at: sequence.sampler(_logprobs(logits[at : at + 1]))
            for at, sequence in enumerate(sequences)
            if sequence.sampler is not None
        }
        waited += _wait(tokens, *drawn.values())
        chosen = np.array(tokens).tolist()
        for at, draw in drawn.items():
            chosen[at] = int(draw.item())
        asked = [
            self._logprob(_logprobs(logits[at]), token, sequence.request.logprobs)
            if sequence.request.logprobs is not None
            else None
            for at, (sequence, token) in enumerate(zip(sequences, chosen, strict=True))
        ]
        return list(zip(ready, chosen, asked, strict=True)), waited

    def _logprob(self, logprobs: Any, token: int, alternatives: int) -> TokenLogprob:
        from dspy_toolkit.lm.engine.sampling import top_logprobs

        logprob, top = top_logprobs(logprobs, token, alternatives)
        named = tuple((self._text(other), value) for other, value in top)
        return TokenLogprob(token=self._text(token), logprob=logprob, top=named)


def _wait(*arrays: Any) -> float:
    """Seconds until these are computed."""
    import mlx.core as mx

    began = time.perf_counter()
    mx.eval(*arrays)
    return time.perf_counter() - began


def _plain(sequence: Sequence) -> bool:
    """Whether the likeliest token is all that is asked for."""
    return sequence.sampler is None and sequence.penalty is None and sequence.request.logprobs is None


def _logprobs(logits: Any) -> Any:
    import mlx.core as mx

    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _penalized(sequence: Sequence, logits: Any) -> Any:
    import mlx.core as mx

    if sequence.penalty is None:
        return logits
    return sequence.penalty(mx.array([*sequence.prompt[: sequence.prompt_size].tolist(), *sequence.reply]), logits)
