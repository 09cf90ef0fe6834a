"""The next token of each row of a batch, with its log-probability: one graph for all rows, on the device, in float32.

    penalties ─▶ grammar's masks ─▶ likeliest, or drawn (`sampling`) ─▶ log-probabilities asked for

Nothing is waited for here. `Chosen.read` waits, once, for all that is to be known of a step: tokens and log-probabilities
come as one array.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.masks import Masks
from dspy_toolkit.lm.engine.sampling import Draws
from dspy_toolkit.lm.engine.sequence import Sequence
from dspy_toolkit.lm.engine.tallies import Tallies, needs_tally
from dspy_toolkit.lm.protocol import TokenLogprob


@dataclass
class Chosen:
    """One token a row, which may not be computed yet."""

    sequences: list[Sequence]
    """One a row."""
    tokens: Any
    """Shape (rows,), on the device: what the next step may be fed before anybody has seen it."""
    packed: Any
    """int32 of shape (rows, 1 + 1 + 2k): the token; the bits of its log-probability; the k likeliest tokens and the bits of
    theirs. Without the last three where no row asks for log-probabilities."""

    def start(self) -> None:
        """Let the device compute it; returns at once."""
        import mlx.core as mx

        mx.async_eval(self.tokens, self.packed)

    def keep(self, rows: abc.Sequence[int]) -> None:
        """Drop all rows but some."""
        import mlx.core as mx

        index = mx.array(list(rows))
        self.sequences = [self.sequences[row] for row in rows]
        self.tokens, self.packed = self.tokens[index], self.packed[index]

    def read(self, text: Callable[[int], str]) -> list[tuple[Sequence, int, TokenLogprob | None]]:
        """(sequence, token, its log-probability if asked for) of each row; waits until they are computed.

        Args:
            text: of a token.
        """
        found = np.array(self.packed)  # waits
        tokens = found[:, 0].tolist()
        if found.shape[1] == 1:
            return [(sequence, token, None) for sequence, token in zip(self.sequences, tokens, strict=True)]
        width = (found.shape[1] - 2) // 2
        own, others = found[:, 1].view(np.float32), found[:, 2 : 2 + width]
        scores = np.ascontiguousarray(found[:, 2 + width :]).view(np.float32)
        return [
            (sequence, token, _named(sequence.request.logprobs, token, float(own[row]), others[row], scores[row], text))
            for row, (sequence, token) in enumerate(zip(self.sequences, tokens, strict=True))
        ]


def _named(
    asked: int | None, token: int, own: float, others: np.ndarray, scores: np.ndarray, text: Callable[[int], str]
) -> TokenLogprob | None:
    """A token's log-probability and the `asked` likeliest, best first; of those that the grammar forbids none."""
    if asked is None:
        return None
    pairs = zip(others.tolist(), scores.tolist(), strict=True)
    best = sorted((pair for pair in pairs if pair[1] > float("-inf")), key=lambda pair: (-pair[1], pair[0]))[:asked]
    return TokenLogprob(token=text(token), logprob=own, top=tuple((text(other), value) for other, value in best))


class Chooser:
    """Chooses for one batch. For the engine's thread only."""

    def __init__(self, masks: Masks) -> None:
        """Args: masks: apply the grammars' bits."""
        self._masks = masks
        self._rows: list[Sequence] = []
        """The rows of last time: what is made of their requests serves as long as they are the same."""
        self._drawn: list[int] = []
        self._draws: Draws | None = None
        self._history: _History | None = None
        self._tallies: Tallies | None = None

    def choose(
        self, logits: Any, sequences: abc.Sequence[Sequence], bits: np.ndarray | None = None, ahead: Any = None
    ) -> Chosen:
        """Choose a token of each row.

        Args:
            logits: shape (rows, vocabulary), of any precision.
            bits: what the grammars allow, as `Masks.fill` gives it.
            ahead: shape (rows,), the token that each row was fed last, where its sequence has not been told it yet.
        """
        import mlx.core as mx

        if list(sequences) != self._rows:
            self._look(list(sequences))
        logits = logits.astype(mx.float32)
        if self._history is not None:
            logits = self._history.penalize(logits, ahead)
        if self._tallies is not None:
            logits = self._tallies.apply(logits, ahead)
        if bits is not None:
            logits = self._masks.apply(logits, bits)
        tokens = mx.argmax(logits, axis=-1)
        asked = [sequence.request.logprobs for sequence in sequences]
        top = max((count for count in asked if count is not None), default=None)
        logprobs: Any = None
        if top is not None or self._draws is not None:
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._draws is not None:
            places = [len(sequences[row].reply) + (ahead is not None) for row in self._drawn]
            whole = len(self._drawn) == len(sequences)
            drawn = self._draws(logprobs if whole else logprobs[mx.array(self._drawn)], places)
            tokens = drawn if whole else mx.put_along_axis(tokens, mx.array(self._drawn), drawn, axis=0)
        return Chosen(list(sequences), tokens, _pack(tokens, logprobs, top))

    def _look(self, sequences: list[Sequence]) -> None:
        self._rows = sequences
        self._drawn = [row for row, sequence in enumerate(sequences) if sequence.request.temperature > 0]
        chosen = [sequences[row] for row in self._drawn]
        self._draws = Draws([each.request for each in chosen], [each.seed for each in chosen]) if chosen else None
        penalized = [row for row, each in enumerate(sequences) if each.request.repetition_penalty != 1]
        self._history = _History(sequences, penalized) if penalized else None
        self._tallies = Tallies(sequences) if any(needs_tally(each) for each in sequences) else None


class _History:
    """Which tokens the penalized rows of a batch have had, in prompt and reply."""

    def __init__(self, sequences: list[Sequence], rows: list[int]) -> None:
        import mlx.core as mx

        self._sequences, self._rows = [sequences[row] for row in rows], rows
        self._whole = len(rows) == len(sequences)
        self._penalties = mx.array([each.request.repetition_penalty for each in self._sequences])[:, None]
        self._seen: Any = None
        self._noted = [0] * len(rows)
        """Tokens of each reply that are in `_seen`."""

    def penalize(self, logits: Any, ahead: Any) -> Any:
        """The logits of all rows; args as `Chooser.choose`'s."""
        import mlx.core as mx

        if self._seen is None:
            self._seen = self._begin(logits.shape[-1])
        index = mx.array(self._rows)
        if ahead is not None:
            new = (ahead if self._whole else ahead[index])[:, None]
            self._noted = [count + 1 for count in self._noted]
        else:
            new = self._since()
        if new is not None:
            self._seen = mx.put_along_axis(self._seen, new, mx.array(True), axis=-1)
        mine = logits if self._whole else logits[index]
        mine = mx.where(self._seen, mx.where(mine < 0, mine * self._penalties, mine / self._penalties), mine)
        if self._whole:
            return mine
        everywhere = mx.broadcast_to(index[:, None], mine.shape)
        return mx.put_along_axis(logits, everywhere, mine, axis=0)

    def _begin(self, vocabulary: int) -> Any:
        """From what the sequences know, when the rows of a batch change."""
        import mlx.core as mx

        seen = np.zeros((len(self._rows), vocabulary), dtype=bool)
        for row, sequence in zip(seen, self._sequences, strict=True):
            row[sequence.prompt[: sequence.prompt_size]] = True
            row[sequence.reply] = True
        self._noted = [len(sequence.reply) for sequence in self._sequences]
        return mx.array(seen)

    def _since(self) -> Any:
        """What was added to the replies since the last time, as wide as the longest; None where nothing was."""
        import mlx.core as mx

        new = [sequence.reply[noted:] for sequence, noted in zip(self._sequences, self._noted, strict=True)]
        self._noted = [len(sequence.reply) for sequence in self._sequences]
        width = max(len(tokens) for tokens in new)
        if width == 0:
            return None
        # Padded with a token of the prompt, which was seen already.
        padded = [
            tokens + [int(each.prompt[0])] * (width - len(tokens))
            for tokens, each in zip(new, self._sequences, strict=True)
        ]
        return mx.array(padded)


def _pack(tokens: Any, logprobs: Any, top: int | None) -> Any:
    """`Chosen.packed`."""
    import mlx.core as mx

    columns = [tokens[:, None].astype(mx.int32)]
    if top is None:
        return columns[0]
    columns.append(mx.take_along_axis(logprobs, tokens[:, None], axis=-1).view(mx.int32))
    top = min(top, logprobs.shape[-1])
    if top > 0:
        best = mx.argpartition(-logprobs, kth=top - 1, axis=-1)[:, :top]
        columns += [best.astype(mx.int32), mx.take_along_axis(logprobs, best, axis=-1).view(mx.int32)]
    return mx.concatenate(columns, axis=-1)
