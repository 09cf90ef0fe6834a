"""Vectors of texts, from the model that also generates: the mean of a text's last hidden states, scaled to length 1.

They come from a model that was trained to write, not to embed: texts on one subject are nearer to each other than to others,
and a model trained for it does that better. All of one model's vectors can be compared, and no others.

A text is computed alone, beside others of like length, without cache and without a chat template. Padding stands behind it,
where a model that reads from left to right does not see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np

from dspy_toolkit.errors import DeadlineExceeded, EngineFailed, RequestRefused, ToolkitError
from dspy_toolkit.lm.engine.prefill import group
from dspy_toolkit.lm.protocol import Embeddings


class EmbeddingJob:
    """One request for vectors, computed group by group between the steps of what is generated."""

    def __init__(self, texts: Sequence[Sequence[int]], deadline_seconds: float, positions: int) -> None:
        """
        Args:
            texts: tokens, at least one each.
            deadline_seconds: from now.
            positions: about how many the model computes in one pass.
        """
        self.future: Future[Embeddings] = Future()
        self._limit, self._deadline = deadline_seconds, time.monotonic() + deadline_seconds
        self._texts = [list(text) for text in texts]
        self._vectors: list[tuple[float, ...]] = [()] * len(self._texts)
        self._groups = [
            part for rows in group([len(text) for text in self._texts]) for part in _split(rows, self._texts, positions)
        ]

    def advance(self, compute: Callable[[list[list[int]]], list[tuple[float, ...]]]) -> bool:
        """Compute one group, and say whether nothing is left to do. What `compute` raises ends the job."""
        if self.future.cancelled():
            return True
        try:
            if time.monotonic() > self._deadline:
                raise DeadlineExceeded(f"Not finished within {self._limit:g} s (lm.timeout). Raise it, or send less.")
            rows = self._groups.pop()
            for row, vector in zip(rows, compute([self._texts[row] for row in rows]), strict=True):
                self._vectors[row] = vector
        except Exception as error:  # isolation boundary: one request
            known = isinstance(error, ToolkitError)
            self.fail(
                error if known else EngineFailed(f"The texts were not embedded: {type(error).__name__}: {error}.")
            )
            return True
        if self._groups:
            return False
        tokens = sum(len(text) for text in self._texts)
        self._settle(lambda: self.future.set_result(Embeddings(vectors=tuple(self._vectors), prompt_tokens=tokens)))
        return True

    def fail(self, error: BaseException) -> None:
        """Tell the caller, who may have gone."""
        self._settle(lambda: self.future.set_exception(error))

    @staticmethod
    def _settle(tell: Callable[[], None]) -> None:
        try:
            tell()
        except InvalidStateError:  # the caller gave up just now
            return


def _split(rows: list[int], texts: Sequence[Sequence[int]], positions: int) -> list[list[int]]:
    most = max(positions // max(len(texts[row]) for row in rows), 1)
    return [rows[at : at + most] for at in range(0, len(rows), most)]


def embed(model: Any, texts: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """The vectors of some texts' tokens. On the engine's thread.

    Raises:
        RequestRefused: the model does not give its hidden states as mlx_lm's models do.
    """
    import mlx.core as mx

    lengths = [len(text) for text in texts]
    padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
    states = _body_of(model)(mx.array(padded))
    if getattr(states, "ndim", 0) != 3:
        raise RequestRefused(_CANNOT.format(type(model).__module__))
    inside = (mx.arange(max(lengths))[None] < mx.array(lengths)[:, None]).astype(mx.float32)[:, :, None]
    mean = (states.astype(mx.float32) * inside).sum(axis=1) / mx.array(lengths, dtype=mx.float32)[:, None]
    vectors = np.array(mean, dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return [tuple(row) for row in vectors.tolist()]


def _body_of(model: Any) -> Any:
    """The part of a model that gives hidden states, without what makes logits of them."""
    inner = getattr(model, "language_model", model)
    for name in ("model", "transformer", "backbone"):
        if callable(body := getattr(inner, name, None)):
            return body
    raise RequestRefused(_CANNOT.format(type(model).__module__))


_CANNOT = "The model ({}) does not give its hidden states, so it embeds no text. Use another one (lm.model)."
