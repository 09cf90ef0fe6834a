"""Prefilling prompts: several of similar length together, a chunk at a time, so that decoding goes on in between.

All rows of a `Prefill` end together. What the shorter rows lack against the longest is padding of the first chunk;
`group` keeps it below PADDING of what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dspy_toolkit.lm.engine.footprint import length_of

if TYPE_CHECKING:
    from dspy_toolkit.lm.engine.caches import Prefix

PADDING = 0.15
"""The greatest share of padding among the tokens that one group computes."""


class Prefill:
    """The prompts of some rows on their way into the caches."""

    def __init__(
        self,
        model: Any,
        tokens: Sequence[np.ndarray],
        prefixes: Sequence[Prefix | None],
        *,
        shared: bool,
        share_from: float = 0,
    ) -> None:
        """
        Args:
            tokens: of each row, what follows its prefix.
            prefixes: what each row starts from.
            shared, share_from: see `caches.start`.
        """
        self._model, self._prefixes, self._shared, self._share_from = model, list(prefixes), shared, share_from
        self._left = list(tokens)
        self.caches: list[Any] = []
        """One a layer; none before anything was computed."""
        self._done = 0
        self.computed = self.padding = 0
        """Input positions of the model so far, padding included, and the padding among them."""

    @property
    def done(self) -> bool:
        """Whether everything is in the caches."""
        return not any(len(left) for left in self._left)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._left)

    @property
    def longest(self) -> int:
        """Tokens that the rows will be wide at the end, without prefixes that are held once."""
        lengths = [0 if prefix is None else length_of(prefix) for prefix in self._prefixes]
        copied = [length for length in lengths if not (self._shared and length >= self._share_from)]
        return max(copied, default=0) + self._done + self.rest

    @property
    def rest(self) -> int:
        """Tokens of the longest row that are still to be computed."""
        return max(len(left) for left in self._left)

    def begin(self) -> None:
        """Have the caches."""
        from dspy_toolkit.lm.engine.caches import start

        if not self.caches:
            self.caches = start(self._model, self._prefixes, shared=self._shared, share_from=self._share_from)

    def advance(self, positions: int) -> None:
        """Compute about `positions` more, all rows together; at least as many as bring the rows to one length."""
        import mlx.core as mx

        self.begin()
        lengths = [len(left) for left in self._left]
        longest = max(lengths)
        lag = longest - min(lengths)
        # The shorter rows start later, so that all padding is in the first chunk and the chunks after it have none.
        width = max(positions // len(lengths), lag + 1)
        if longest <= width + width // 4:  # a small rest is not worth a pass of its own
            width = longest
        chunks = [left[: max(width - (longest - length), 0)] for left, length in zip(self._left, lengths, strict=True)]
        padding = [width - len(chunk) for chunk in chunks]
        padded = np.stack([np.pad(chunk, (0, pad)) for chunk, pad in zip(chunks, padding, strict=True)])
        if any(padding):
            for cache in self.caches:
                cache.prepare(lengths=[len(chunk) for chunk in chunks], right_padding=padding)
        self._model(mx.array(padded), cache=self.caches)
        if any(padding):
            for cache in self.caches:
                cache.finalize()
        mx.eval([cache.state for cache in self.caches])
        self._left = [left[len(chunk) :] for left, chunk in zip(self._left, chunks, strict=True)]
        self.computed += padded.size
        self._done += width
        self.padding += sum(padding)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but some rows."""
        from dspy_toolkit.lm.engine.caches import keep_rows

        self.caches = keep_rows(self.caches, rows) if self.caches else []
        self._prefixes = [self._prefixes[row] for row in rows]
        self._left = [self._left[row] for row in rows]


def group(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths` in groups to prefill together, each with at most PADDING of padding, shortest first."""
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if groups:
            positions = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if positions - tokens - lengths[index] <= PADDING * positions:
                groups[-1].append(index)
                tokens += lengths[index]
                continue
        groups.append([index])
        tokens = lengths[index]
    return groups[::-1]
