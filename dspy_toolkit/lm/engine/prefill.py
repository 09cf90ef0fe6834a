"""Reading prompts: rows of like length side by side, a bounded piece at a time, so that other rows' decoding goes on between.

All rows of a `Prefill` end together. What they lack in length against the longest is padding of the first piece: `group`
keeps it below PADDING of what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dspy_toolkit.lm.engine.caches import Prefix

PADDING = 0.15
"""The greatest share of padding among the tokens that one group computes."""


class Prefill:
    """The tokens of some rows on their way into the caches."""

    def __init__(
        self, model: Any, tokens: Sequence[np.ndarray], prefixes: Sequence[Prefix | None], *, shared: bool
    ) -> None:
        """
        Args:
            tokens: what each row has to read after its prefix; at least one each.
            prefixes: what each row starts from.
            shared: see `caches.start`.
        """
        from dspy_toolkit.lm.engine.caches import start

        self._model = model
        self._left = list(tokens)
        self.caches = start(model, prefixes, shared=shared)
        self.computed = self.padding = 0
        """Places of the model's input so far, padding included, and the padding among them."""

    @property
    def done(self) -> bool:
        """Whether all is read."""
        return not any(len(left) for left in self._left)

    def advance(self, places: int) -> None:
        """Read some more: about `places`, all rows together, and always enough that the rows come out even."""
        import mlx.core as mx

        lengths = [len(left) for left in self._left]
        longest = max(lengths)
        lag = longest - min(lengths)
        # The shorter rows start later: all padding is in the first piece, and the pieces after it have none.
        width = max(places // len(lengths), lag + 1)
        if longest <= width + width // 4:  # a small rest is not worth a pass of its own
            width = longest
        pieces = [left[: max(width - (longest - length), 0)] for left, length in zip(self._left, lengths, strict=True)]
        padding = [width - len(piece) for piece in pieces]
        padded = np.stack([np.pad(piece, (0, pad)) for piece, pad in zip(pieces, padding, strict=True)])
        if any(padding):
            for cache in self.caches:
                cache.prepare(lengths=[len(piece) for piece in pieces], right_padding=padding)
        self._model(mx.array(padded), cache=self.caches)
        if any(padding):
            for cache in self.caches:
                cache.finalize()
        mx.eval([cache.state for cache in self.caches])
        self._left = [left[len(piece) :] for left, piece in zip(self._left, pieces, strict=True)]
        self.computed += padded.size
        self.padding += sum(padding)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all but some rows."""
        from dspy_toolkit.lm.engine.caches import keep_rows

        self.caches = keep_rows(self.caches, rows)
        self._left = [self._left[row] for row in rows]


def group(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths` in groups to read side by side, each with less than PADDING of padding, shortest first."""
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if groups:
            places = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if places - tokens - lengths[index] <= PADDING * places:
                groups[-1].append(index)
                tokens += lengths[index]
                continue
        groups.append([index])
        tokens = lengths[index]
    return groups[::-1]
