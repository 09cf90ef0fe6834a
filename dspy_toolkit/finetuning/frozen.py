"""The blocks below the first adapted one: computed once for each row, since no step changes what they give.

With 8 of 30 blocks adapted, a step then computes 8 blocks forward and back in place of 30 forward and 8 back. Each row's
states at the boundary are kept, in float32 as many bytes as 4 × tokens × width.

Not covered: models whose trunk takes no embeddings, or changes those that it is given; `FrozenBlocks.of` finds that out, and such a
model is computed whole.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from dspy_toolkit.finetuning.batches import Part
from dspy_toolkit.finetuning.rows import EncodedRow

MOST_BYTES = 2**30
"""Of kept states; where there would be more, the blocks are computed each time."""
PROBE = (1, 7, 3, 5, 2)
"""Tokens that every vocabulary has."""
CLOSE = 1e-3
"""Largest difference of the probe's logits, in shares of the largest logit."""
_BLOCK = re.compile(r"^(model\.layers\.)(\d+)(\..*)$")


class FrozenBlocks:
    """The lower blocks of a model, and the states that they gave. The model itself is left with the upper ones."""

    def __init__(self, model: Any, count: int) -> None:
        """Args: count: of blocks below the first adapted one; at least 1."""
        self.count = count
        self._trunk = model.model
        self._below, self._above = list(self._trunk.layers[:count]), list(self._trunk.layers[count:])
        self._states: dict[EncodedRow, Any] = {}

    @classmethod
    def of(cls, model: Any, adapted: int) -> FrozenBlocks | None:
        """Part `model` below its last `adapted` blocks; None, and the model as it was, where that cannot be done."""
        trunk: Any = getattr(model, "model", None)
        layers = getattr(trunk, "layers", None)
        if trunk is None or not isinstance(layers, list) or not 0 < adapted < len(layers):
            return None
        if any("input_embeddings" not in inspect.signature(type(each).__call__).parameters for each in (model, trunk)):
            return None
        probe = mx.array([PROBE])
        whole = model(probe)
        made = cls(model, len(layers) - adapted)
        states = made._below_only(lambda: trunk(probe))
        trunk.layers = made._above
        parted = model(probe, input_embeddings=states)
        if mx.all(mx.abs(whole - parted) <= CLOSE * mx.abs(whole).max()).item():
            return made
        made.undo()
        return None

    def name_of(self, name: str) -> str:
        """What a parameter of the upper blocks is called in the whole model."""
        return _BLOCK.sub(lambda found: f"{found[1]}{int(found[2]) + self.count}{found[3]}", name)

    def name_here(self, name: str) -> str:
        """The inverse of `name_of`."""
        return _BLOCK.sub(lambda found: f"{found[1]}{int(found[2]) - self.count}{found[3]}", name)

    def keep(self, parts: Sequence[Part], run: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        """Compute the states of the rows of `parts`, in place of those that were kept before. They must be the same parts in
        every run of a training: how rows are grouped changes the last digits.

        Args:
            run: (prefix, inputs) → what the trunk gives for both; the prefix may be empty.
        """
        self._states = {}
        for part in parts:
            prefix, own = self._below_only(lambda part=part: run(part.prefix, part.inputs))
            for at, row in enumerate(part.encoded):
                length = len(row.tokens) - 1 - len(part.prefix)
                pieces = [own[at, :length]] if prefix is None else [prefix[0], own[at, :length]]
                self._states[row] = mx.concatenate(pieces)
            mx.eval([self._states[row] for row in part.encoded])

    def bytes_of(self, parts: Sequence[Part]) -> int:
        """What the states of `parts` will take."""
        width = self._below_only(lambda: self._trunk(mx.array([PROBE]))).shape[-1]
        return sum(len(row.tokens) for part in parts for row in part.encoded) * width * 4

    def undo(self) -> None:
        """Give the model its lower blocks back."""
        self._trunk.layers = [*self._below, *self._above]

    def states(self, part: Part) -> tuple[Any, Any]:
        """(states of the prefix, shape (1, prefix, width); of the inputs, padded, shape (rows, inputs, width))."""
        shared, width = len(part.prefix), part.inputs.shape[1]
        rows = []
        for row in part.encoded:
            own = self._states[row][shared:]
            rows.append(mx.pad(own, [(0, width - own.shape[0]), (0, 0)]))
        return self._states[part.encoded[0]][None, :shared], mx.stack(rows)

    def _below_only(self, run: Callable[[], Any]) -> Any:
        """What `run` gives where the trunk has the lower blocks only and no norm behind them."""
        layers, norm = self._trunk.layers, self._trunk.norm
        self._trunk.layers, self._trunk.norm = self._below, _same
        try:
            return run()
        finally:
            del self._trunk.norm
            self._trunk.layers, self._trunk.norm = layers, norm


def _same(states: Any) -> Any:
    return states
