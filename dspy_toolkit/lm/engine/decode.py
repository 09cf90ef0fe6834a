"""Decoding: the rows whose prompts are read, one step for all of them at a time.

A step reads what each row has pending and chooses one token for each. Where grammars dictate several tokens to many rows at
once, one step reads several tokens of each, padded where a row has fewer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.masks import Masks, likeliest
from dspy_toolkit.lm.engine.sequence import Outcome, Row
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.protocol import TokenLogprob

FULL = 0.5
"""A step is one token wider while this share of the rows has another token to read: then a place in it costs less than a place
in the step that it saves (a step of sixteen rows on two cores spends half its time on reading the weights)."""


@dataclass
class Steps:
    """What the steps took together."""

    steps: int = 0
    widths: int = 0
    """Rows of all steps."""
    seconds: float = 0.0
    model_seconds: float = 0.0
    """Of these, inside the model."""


class Decoding:
    """Rows that are decoded together."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: str) -> None:
        """Args: device: `metal`, `cuda` or `cpu`."""
        self.rows: list[Row] = []
        self.caches: list[Any] = []
        self.counts = Steps()
        self._model, self._text = model, tokenizer.token_text
        self._masks = Masks(device, tokenizer.vocabulary)
        self._on_cpu = device == "cpu"

    def join(self, rows: Sequence[Row], caches: list[Any]) -> None:
        """Rows whose prompts are read but for their pending token."""
        from dspy_toolkit.lm.engine.caches import extend

        self.rows.extend(rows)
        self.caches = extend(self.caches, caches)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but some rows."""
        from dspy_toolkit.lm.engine.caches import keep_rows

        self.rows = [self.rows[row] for row in rows]
        self.caches = keep_rows(self.caches, rows)

    def step(self) -> list[tuple[Row, Outcome]]:
        """Choose a token for every row that has none left to read, and give the rows that are over, with why."""
        began = time.perf_counter()
        logits, ready = self._read()
        seconds = time.perf_counter() - began
        chosen, hidden = self._choose(logits, ready)
        seconds += hidden
        over = []
        for index, token, logprob in chosen:
            row = self.rows[index]
            outcome = row.take(token, logprob)
            if outcome is not None:
                over.append((row, outcome))
            elif row.ticket.read:
                row.stream()
        self.counts.steps += 1
        self.counts.widths += len(self.rows)
        if over:
            gone = {row for row, _ in over}
            self.keep([index for index, row in enumerate(self.rows) if row not in gone])
        self.counts.model_seconds += seconds
        self.counts.seconds += time.perf_counter() - began
        return over

    def _width(self) -> int:
        pending = [len(row.pending) for row in self.rows]
        width = 1
        while sum(length > width for length in pending) >= FULL * len(pending):
            width += 1
        return width

    def _read(self) -> tuple[Any, list[int]]:
        """(logits after each row's last token that was read, the rows that have none left to read)."""
        import mlx.core as mx

        width = self._width()
        pieces = [row.pending[:width] for row in self.rows]
        for row in self.rows:
            row.pending = row.pending[width:]
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
        ready = [index for index, row in enumerate(self.rows) if not row.pending]
        if len(ready) < len(self.rows):
            logits = logits[mx.array(ready)] if ready else None
        if logits is None:
            mx.eval([cache.state for cache in self.caches])
        else:
            # Started now, waited for later: the masks are made meanwhile.
            mx.async_eval(logits)
        return logits, ready

    def _choose(self, logits: Any, ready: Sequence[int]) -> tuple[list[tuple[int, int, TokenLogprob | None]], float]:
        """((row, token, its log-probability if asked for) for each ready row, seconds spent waiting for the model)."""
        import mlx.core as mx

        if logits is None:
            return [], 0.0
        rows = [self.rows[index] for index in ready]
        bits = None
        if any(row.matcher is not None for row in rows):
            bits = self._masks.fill([row.matcher for row in rows])
        began = time.perf_counter()
        mx.eval(logits)
        waited = time.perf_counter() - began
        if self._on_cpu and all(_plain(row) for row in rows):
            tokens = likeliest(np.array(logits, copy=False), bits)
            return [(index, token, None) for index, token in zip(ready, tokens, strict=True)], waited
        if any(row.penalty is not None for row in rows):
            logits = mx.concatenate([_penalized(row, logits[at : at + 1]) for at, row in enumerate(rows)])
        if bits is not None:
            logits = self._masks.apply(logits, bits)
        tokens = mx.argmax(logits, axis=-1)
        drawn = {
            at: row.sampler(_logprobs(logits[at : at + 1])) for at, row in enumerate(rows) if row.sampler is not None
        }
        mx.eval(tokens, *drawn.values())
        chosen = np.array(tokens).tolist()
        for at, draw in drawn.items():
            chosen[at] = int(draw.item())
        asked = [
            self._logprob(_logprobs(logits[at]), token, row.request.logprobs)
            if row.request.logprobs is not None
            else None
            for at, (row, token) in enumerate(zip(rows, chosen, strict=True))
        ]
        return list(zip(ready, chosen, asked, strict=True)), waited

    def _logprob(self, logprobs: Any, token: int, alternatives: int) -> TokenLogprob:
        from dspy_toolkit.lm.engine.sampling import top_logprobs

        logprob, top = top_logprobs(logprobs, token, alternatives)
        named = tuple((self._text(other), value) for other, value in top)
        return TokenLogprob(token=self._text(token), logprob=logprob, top=named)


def _plain(row: Row) -> bool:
    """Whether the likeliest token is all that is asked for."""
    return row.sampler is None and row.penalty is None and row.request.logprobs is None


def _logprobs(logits: Any) -> Any:
    import mlx.core as mx

    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _penalized(row: Row, logits: Any) -> Any:
    import mlx.core as mx

    if row.penalty is None:
        return logits
    return row.penalty(mx.array([*row.prompt[: row.prompt_size].tolist(), *row.reply]), logits)
