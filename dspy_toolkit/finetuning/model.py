"""A loaded model made ready for training: adapters in its linear layers, its head at the scored tokens only.

Three things make a classification several times faster than computing whole rows. The vocabulary's logits are computed where
a token is scored, and nowhere else. And what all rows of a part begin with goes through the model once, as one row whose
keys and values the others read; gradients flow through both. And the blocks below the first adapted one are computed once
for each row (`frozen`). The first needs `model.model`, as nearly all of mlx_lm's models
have it; the others need plain caches (no sliding windows, no state spaces). A model without them is computed whole.

Not covered: loading (`lm.models.weights.load_model(…, differentiable=True)`), embeddings and experts (mlx_lm adapts them, and
so does this, but nothing here tests it).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.nn import losses
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_unflatten

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.finetuning.batches import Part
from dspy_toolkit.finetuning.frozen import MOST_BYTES, FrozenBlocks
from dspy_toolkit.finetuning.values import TrainSettings
from dspy_toolkit.lm.engine.caches import divisible
from dspy_toolkit.lm.models.adapters import AdapterConfig


def adapter_config(settings: TrainSettings) -> AdapterConfig:
    """What mlx_lm needs to put the adapter on its model."""
    parameters = {"rank": settings.rank, "scale": settings.scale, "dropout": 0.0}
    return AdapterConfig(fine_tune_type=settings.kind, num_layers=settings.layers, lora_parameters=parameters)


class AdaptedModel:
    """A model with a fresh adapter. For the thread that loaded it."""

    def __init__(self, model: Any, settings: TrainSettings) -> None:
        """Args: model: mlx_lm's, loaded differentiable; it is changed.

        Raises:
            TrainingError: its functions have no gradients, or mlx_lm cannot adapt its layers.
        """
        from mlx_lm.tuner.utils import linear_to_lora_layers

        module = sys.modules[type(model).__module__]
        if hasattr(getattr(module, "scaled_dot_product_attention", None), "instead_of"):
            raise TrainingError(
                "An engine of this process has replaced functions of this model by ones without gradients. Train in a "
                "process of its own: dspy_toolkit.finetuning.train."
            )
        self.model, self.shares = model, divisible(model)
        self._frozen: FrozenBlocks | None = None
        self._gather = _Gather()
        model.freeze()
        config = adapter_config(settings)
        try:
            linear_to_lora_layers(model, config.num_layers, config.lora_parameters, use_dora=settings.kind == "dora")
        except (ValueError, TypeError, AttributeError) as error:
            raise TrainingError(f"{settings.kind} cannot adapt this model's layers: {error}.") from error
        if not self.parameters:
            raise TrainingError("This model has no layer that an adapter can change. Choose another model (lm.model).")
        self._first = self.parameters
        model.train()
        if self.shares and settings.layers > 0:
            self._frozen = FrozenBlocks.of(model, settings.layers)
        if not self._gather.into(model):
            self._gather = None
        self._prepared: tuple[Any, ...] = ()
        self.draw(settings.seed)

    @property
    def parameters(self) -> dict[str, Any]:
        """The adapter's arrays by name, in the names' order."""
        arrays: Any = tree_flatten(self.model.trainable_parameters())
        return dict(sorted((self._frozen.name_of(name) if self._frozen else name, array) for name, array in arrays))

    @parameters.setter
    def parameters(self, arrays: dict[str, Any]) -> None:
        named = [(self._frozen.name_here(name) if self._frozen else name, array) for name, array in arrays.items()]
        self.model.update(tree_unflatten(named))

    def prepare(self, parts: Sequence[Part]) -> None:
        """Compute for all rows what no step changes. `parts` hold each row once, and are the same in every run. What was computed
        for the same parts is still there; what was computed for others is given up.
        """
        frozen, rows = self._frozen, tuple(part.encoded for part in parts)
        if frozen is None or rows == self._prepared:
            return
        if frozen.bytes_of(parts) > MOST_BYTES:
            frozen.undo()
            self._frozen = None
            return
        frozen.keep(parts, self._trunk)
        self._prepared = rows

    def _trunk(self, prefix: np.ndarray, inputs: np.ndarray) -> tuple[Any, Any]:
        """The trunk's states of a prefix, or None, and of what follows it."""
        trunk, before, caches = self.model.model, None, None
        if len(prefix):
            begun = [_Beginning() for _ in trunk.layers]
            before = trunk(mx.array(prefix[None]), begun)
            caches = [_Continued(layer) for layer in begun]
        return before, trunk(mx.array(inputs), caches)

    def draw(self, seed: int) -> dict[str, Any]:
        """Give the adapter first weights that depend on the seed and nothing else; mlx_lm draws them from a generator of the
        process.
        """
        draw, drawn = np.random.default_rng(seed), dict(self._first)
        for name, array in drawn.items():
            if name.endswith("lora_a"):
                bound = 1 / np.sqrt(array.shape[-2])
                drawn[name] = mx.array(draw.uniform(-bound, bound, array.shape).astype(np.float32))
        self.parameters = drawn
        return drawn

    def gradients(self, part: Part) -> tuple[Any, dict[str, Any]]:
        """(summed cross-entropy of the part's scored tokens, its gradient by name), evaluated."""
        loss, gradient = value_and_grad(self.model, self.loss)(part)
        mx.eval(loss, gradient)
        arrays: Any = tree_flatten(gradient)
        return loss, {self._frozen.name_of(name) if self._frozen else name: array for name, array in arrays}

    def loss(self, part: Part) -> Any:
        """Natural cross-entropy of the part's scored tokens, summed; float32."""
        return losses.cross_entropy(self._logits(part), mx.array(part.targets), reduction="sum")

    def evaluate(self, part: Part) -> tuple[float, int, float]:
        """(loss as `loss`, rows whose scored tokens all are the likeliest, summed probability of each row's scored tokens)."""
        logits, targets = self._logits(part), mx.array(part.targets)
        entropies = np.array(losses.cross_entropy(logits, targets, reduction="none"), np.float64)
        missed = np.array(mx.argmax(logits, axis=-1) != targets)
        of_rows = len(part.encoded)
        wrong = np.bincount(part.rows, weights=missed, minlength=of_rows)
        surprise = np.bincount(part.rows, weights=entropies, minlength=of_rows)
        return float(entropies.sum()), int((wrong == 0).sum()), float(np.exp(-surprise).sum())

    def _logits(self, part: Part) -> Any:
        """Of the tokens from which scored ones are predicted; shape (scored, vocabulary), float32."""
        of_prefix: dict[str, Any] = {}
        of_inputs: dict[str, Any] = {}
        caches = None
        if self._frozen is not None:
            of_prefix["input_embeddings"], of_inputs["input_embeddings"] = self._frozen.states(part)
        if len(part.prefix):
            begun = [_Beginning() for _ in self.model.layers]
            # Its logits are asked for by nobody, so they are never computed.
            self.model(mx.array(part.prefix[None]), cache=begun, **of_prefix)
            caches = [_Continued(layer) for layer in begun]
        rows, places = mx.array(part.rows), mx.array(part.places)
        if self._gather is None:
            logits = self.model(mx.array(part.inputs), cache=caches, **of_inputs)[rows, places]
        else:
            with self._gather.only(rows, places):
                logits = self.model(mx.array(part.inputs), cache=caches, **of_inputs)[0]
        return logits.astype(mx.float32)


class _Gather:
    """Lets a model's trunk give the states of some places only, so that its head is computed for these alone."""

    def __init__(self) -> None:
        self._places: tuple[Any, Any] | None = None

    def into(self, model: Any) -> bool:
        """Whether `model` has a trunk apart from its head; its class becomes one that asks `self`."""
        trunk = getattr(model, "model", None)
        if not isinstance(trunk, nn.Module) or not hasattr(trunk, "layers"):
            return False
        kind: Any = type(trunk)

        def call(this: Any, *arguments: Any, **options: Any) -> Any:
            states = kind.__call__(this, *arguments, **options)
            return states if self._places is None else states[self._places][None]

        # A class of this one object: a wrapper around it would rename all parameters.
        trunk.__class__ = type(kind.__name__, (kind,), {"__call__": call})  # pyright: ignore[reportAttributeAccessIssue]
        return True

    def only(self, rows: Any, places: Any) -> _Gather:
        self._places = (rows, places)
        return self

    def __enter__(self) -> None:
        """The trunk gives these places only, shape (1, places, width)."""

    def __exit__(self, *_: object) -> None:
        self._places = None


class _Beginning:
    """One layer's keys and values of the prefix, as a cache that models of mlx_lm take."""

    offset = 0
    keys: Any
    values: Any

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        from mlx_lm.models.base import create_causal_mask

        if return_array or window_size is not None:
            return create_causal_mask(length, self.offset, window_size=window_size)
        return None if length == 1 else "causal"

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        self.keys, self.values = keys, values
        return keys, values


class _Continued(_Beginning):
    """Those of rows that go on from one prefix."""

    def __init__(self, before: _Beginning) -> None:
        self._before, self.offset = before, before.keys.shape[2]

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        return _behind(self._before.keys, keys), _behind(self._before.values, values)


def _behind(prefix: Any, own: Any) -> Any:
    """Each row's own keys or values behind those of the one prefix."""
    return mx.concatenate([mx.broadcast_to(prefix, (own.shape[0], *prefix.shape[1:])), own], axis=2)
