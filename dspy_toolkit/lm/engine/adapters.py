"""Adapters beside one loaded model: its linear layers with and without them, exchanged between two steps.

The base's weights are there once. An adapter is a few small arrays for each layer, and a module around the base's own that
adds them; making it the active one puts these modules in the place of the base's, and making none active puts the base's
back. So the base, when it is asked, is computed exactly as it would be if there were no adapters.

Covered: LoRA and DoRA on linear layers, quantized ones too. Not covered: adapters of embeddings and of experts; they run as
a model of their own, `MODEL+adapter-HASH`. For the engine's thread only.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.models.adapters import LEAVES, AdapterConfig
from dspy_toolkit.lm.models.hashes import ADAPTER

LOADED = 16
"""Adapters whose arrays are kept; of rank 8 for all layers of the embedded model, each takes 10 MB."""


class AdaptedLinear(nn.Module):
    """The base's linear layer, and what an adapter adds to it. As mlx_lm's LoRALinear and DoRALinear compute it."""

    def __init__(self, linear: Any, a: mx.array, b: mx.array, scale: float, magnitude: mx.array | None) -> None:
        """Args: a: shape (inputs, rank); b: (rank, outputs); magnitude: of DoRA, (outputs,)."""
        super().__init__()
        self.linear, self.a, self.b = linear, a * scale, b
        self.gain = None if magnitude is None else magnitude / _norms(linear, self.a, b)

    def __call__(self, x: mx.array) -> mx.array:
        """Args: x: shape (…, inputs)."""
        y = self.linear(x)
        added = ((x @ self.a) @ self.b).astype(x.dtype)
        if self.gain is None:
            return y + added
        bias = self.linear.get("bias")
        if bias is None:
            return self.gain.astype(x.dtype) * (y + added)
        return self.gain.astype(x.dtype) * (y - bias + added) + bias


def _norms(linear: Any, a: mx.array, b: mx.array) -> mx.array:
    """Lengths of the rows of the adapted weights; once, since nothing changes any more."""
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight,
            linear.scales,
            linear.biases,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    return mx.linalg.norm(weight + b.T @ a.T, axis=1)


@dataclass(frozen=True)
class _Place:
    """Where a layer of the model is."""

    parent: Any
    name: str
    base: Any
    adapted: Any


class Adapters:
    """The adapters of one model. At most one of them is active."""

    def __init__(self, model: Any, folder: Path | None, most: int = LOADED) -> None:
        """Args: folder: `home/adapters`; most: adapters whose arrays are kept."""
        self._model, self._folder, self._most = model, folder, most
        self._loaded: OrderedDict[str, list[_Place]] = OrderedDict()
        self._active: str | None = None

    def load(self, sha256: str) -> None:
        """Have an adapter's arrays, and drop those that were not used for longest where there are too many.

        Raises:
            ModelError: it cannot be read, or does not fit this model.
        """
        if sha256 not in self._loaded:
            self._loaded[sha256] = self._read(sha256)
        self._loaded.move_to_end(sha256)
        while len(self._loaded) > self._most:
            oldest = next(iter(self._loaded))
            if oldest == self._active:
                self.activate(None)
            del self._loaded[oldest]

    def activate(self, sha256: str | None) -> None:
        """Let the model compute with an adapter, which is loaded if need be, or as it is."""
        if sha256 == self._active:
            return
        if sha256 is not None:
            self.load(sha256)
        if self._active is not None:
            for place in self._loaded[self._active]:
                setattr(place.parent, place.name, place.base)
        self._active = sha256
        if sha256 is not None:
            for place in self._loaded[sha256]:
                setattr(place.parent, place.name, place.adapted)

    def _read(self, sha256: str) -> list[_Place]:
        if self._folder is None:
            raise ModelError("This engine knows no folder of adapters. Find its weights with find_weights.")
        folder, active = self._folder / sha256, self._active
        self.activate(None)
        try:
            config = AdapterConfig.model_validate(json.loads((folder / ADAPTER[0]).read_text()))
            arrays: Any = mx.load(str(folder / ADAPTER[1]), format="safetensors")
            places = self._fit(arrays, float(config.lora_parameters["scale"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"The adapter {sha256[:8]} cannot be put on this model: {reason}. Use the model that it was trained on, or "
                f"ask for it as a model of its own, MODEL+adapter-{sha256[:8]}."
            ) from error
        finally:
            if active is not None:
                self.activate(active)
        mx.eval([place.adapted.parameters() for place in places])
        return places

    def _fit(self, arrays: dict[str, mx.array], scale: float) -> list[_Place]:
        layers: dict[str, dict[str, mx.array]] = {}
        for name, array in arrays.items():
            layer, _, leaf = name.rpartition(".")
            if leaf not in LEAVES:
                raise ValueError(f"{name} is no tensor of an adapter")
            layers.setdefault(layer, {})[leaf] = array
        modules = dict(self._model.named_modules())
        places = []
        for layer, leaves in layers.items():
            parent, _, name = layer.rpartition(".")
            base = modules.get(layer)
            if not isinstance(base, nn.Linear | nn.QuantizedLinear):
                raise ValueError(f"{layer} is {'no layer of it' if base is None else f'a {type(base).__name__}'}")
            a, b, magnitude = leaves["lora_a"], leaves["lora_b"], leaves.get("m")
            outputs, inputs = base.weight.shape
            if isinstance(base, nn.QuantizedLinear):
                inputs = inputs * 32 // base.bits
            if (a.shape[0], b.shape[1]) != (inputs, outputs) or a.shape[1] != b.shape[0]:
                raise ValueError(f"{layer} has shape {(inputs, outputs)}, the adapter's {a.shape} and {b.shape}")
            places.append(_Place(modules[parent], name, base, AdaptedLinear(base, a, b, scale, magnitude)))
        return places
