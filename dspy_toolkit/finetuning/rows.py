"""Rows as tokens: what the model reads, and which of the tokens after it count.

The prompt's tokens are those of a request to the engine, the reply's those that the engine would decode, so that what is
trained is what will be asked. A row is cut behind its last scored token, since nothing after it changes the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_toolkit.errors import RequestRefused, TrainingError
from dspy_toolkit.finetuning.values import TrainingRow
from dspy_toolkit.lm.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """A row's tokens."""

    tokens: np.ndarray
    """Prompt and reply, up to the last scored token; shape (length,), int32."""
    scored: np.ndarray
    """Places in `tokens` that count in the loss, ascending, each at least 1; shape (count,), int32."""


def encode_rows(rows: Sequence[TrainingRow], tokenizer: Tokenizer, what: str = "row") -> list[EncodedRow]:
    """Args: what: what a row is called in errors.

    Raises:
        TrainingError: a row is longer than the context, its template refuses it, or nothing of it is scored; with its
            number, counted from 0.
    """
    return [_encode(row, tokenizer, f"{what} {number}") for number, row in enumerate(rows)]


def _encode(row: TrainingRow, tokenizer: Tokenizer, name: str) -> EncodedRow:
    try:
        prompt = tokenizer.encode_chat(row.prompt, thinking=row.thinking if tokenizer.has_thinking else None)
        reply = tokenizer.encode_reply(row.reply)
    except RequestRefused as error:
        raise TrainingError(f"Training {name} cannot be read by this model. {error}") from error
    if row.scored:
        flags = _inside(row, reply, tokenizer, name)
    else:
        reply, flags = [*reply, tokenizer.end_of_turn], [True] * (len(reply) + 1)
    if (length := len(prompt) + len(reply)) > tokenizer.context_size:
        raise TrainingError(
            f"Training {name} has {length} tokens, {len(reply)} of them in the reply, and the model's context is "
            f"{tokenizer.context_size}. Leave the row out, or shorten its prompt (fewer or shorter demonstrations)."
        )
    places = len(prompt) + np.flatnonzero(flags)
    if not len(places):
        raise TrainingError(
            f"Training {name}: no token of its reply {row.reply[:60]!r} lies in the scored spans {list(row.scored)}. Give "
            "spans [start, end) of the reply's characters."
        )
    tokens = np.asarray([*prompt, *reply][: places[-1] + 1], dtype=np.int32)
    return EncodedRow(tokens, places.astype(np.int32))


def _inside(row: TrainingRow, reply: list[int], tokenizer: Tokenizer, name: str) -> list[bool]:
    """Whether each token of the reply shares a character with a scored span."""
    # Where each token's text ends; of one that is half a character, where the character begins.
    ends = [len(tokenizer.decode(reply[: count + 1]).rstrip("\ufffd")) for count in range(len(reply))]
    if not ends or ends[-1] != len(row.reply):
        raise TrainingError(
            f"Training {name}: this model's tokens spell its reply {row.reply[:60]!r} differently, so the scored spans cannot "
            "be found in it. Leave `scored` empty for this row."
        )
    starts = [0, *ends[:-1]]
    return [
        any(start < max(high, low + 1) and low < until for start, until in row.scored)
        for low, high in zip(starts, ends, strict=True)
    ]
