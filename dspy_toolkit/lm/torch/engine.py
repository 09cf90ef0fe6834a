"""The torch engine: the MLX engine's contract over PyTorch, for where MLX cannot run. Simple rather than fast.

Its thread answers one request after another. A prompt starts from what it shares with the one before it. Text, grammar
and stop strings are those of `lm.engine.sequence`, as in the MLX engine.

Covered, beside what every engine covers (`lm.engine.thread`): cancelling and closing at the next token, or the next 512
tokens of a prompt; an exception that ends one request only. Not covered: decoding several requests together, scoring
several labels in one pass, adapters (LoRA), deadlines while the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.engine.one_by_one import OneByOne
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import Path
from dspy_toolkit.lm.models.hardware import torch_installed
from dspy_toolkit.lm.models.tokenizer import load_tokenizer
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.lm.torch.weights import (
    INSTALL,
    calm_threads,
    check_torch_fits,
    choose_device,
    free_memory,
    import_torch,
    load_torch_model,
)
from dspy_toolkit.settings import LMSettings

PREFILL_CHUNK = 512
"""Prompt tokens computed at once; between two chunks a request can be given up."""


class TorchEngine(OneByOne):
    """One model behind one thread. Torch is imported, and the model loaded, with the first request."""

    label = "torch engine"

    def __init__(self, weights_: Weights, settings: LMSettings, device: str | None = None) -> None:
        """Args:
        weights_: what to load.
        settings: queue, deadline, lease and memory limits; `batch_size` is not used.
        device: `cuda`, `mps` or `cpu`; the best there is by default.

        Raises:
            ModelError: torch is not installed, the weights have an adapter, or the tokenizer cannot be read.
        """
        if not torch_installed():
            raise ModelError(f"torch is not installed, so it cannot run {weights_.name}. {INSTALL}")
        if weights_.adapter is not None:
            raise ModelError(
                f"{weights_.name} has an adapter, which mlx_lm alone can read. Fuse it with `mlx_lm.fuse`, or use "
                "lm.backend=mlx."
            )
        calm_threads()
        super().__init__(weights_.name, load_tokenizer(weights_.folder, weights_.sha256), settings)
        self._weights, self._device = weights_, device

    def _serve(self) -> None:
        device = self._device = self._device or choose_device()
        self._take_lease("metal" if device == "mps" else device)  # one accelerator, whoever computes on it
        check_torch_fits(self._weights, device, self._settings.memory_limit_gb)
        # Held by this frame alone, so that the model is gone when the thread gives the memory back.
        text = _Text(load_torch_model(self._weights, device), device)
        self._answer_all(text, self._generate)

    def _free(self) -> None:
        free_memory(self._device)

    def _generate(self, sequence: Sequence, text: _Text) -> Outcome:
        def start(after: Path = ()) -> np.ndarray:
            # Labels are asked for depth first: the cache is cut to where the next branch leaves.
            kept, logits = text.start(np.asarray([*sequence.prompt, *after]), lambda: self._check(sequence))
            if sequence.first_token is None:
                sequence.reused = min(kept, sequence.prompt_size)
            return logits

        if sequence.spelling is not None:
            return self._score(sequence, sequence.spelling, start)
        return self._decode(sequence, start(), text.feed)


class _Text:
    """The tokens that are in the attention cache, which is kept from one request to the next."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device
        self._tokens: list[int] = []
        self._cache: Any = None
        self._seconds = 0.0

    def start(self, prompt: np.ndarray, check: Callable[[], None]) -> tuple[int, np.ndarray]:
        """(tokens that were in the cache already, logits after the prompt). `check` may raise, between two chunks."""
        kept = self._keep(prompt)
        logits = None
        for at in range(kept, len(prompt), PREFILL_CHUNK):
            check()
            logits = self.feed(prompt[at : at + PREFILL_CHUNK].tolist())
        assert logits is not None
        return kept, logits

    def feed(self, tokens: list[int]) -> np.ndarray:
        """Logits, float32 of shape (vocabulary,), after `tokens` as well."""
        torch = import_torch()
        began = time.monotonic()
        with torch.inference_mode():
            seen = self._model(
                torch.tensor([tokens], device=self._device),
                cache=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = seen.logits[0, -1].float().cpu().numpy()
        self._cache = seen.past_key_values
        self._tokens += tokens
        self._seconds += time.monotonic() - began
        return logits

    def forget(self) -> None:
        """Start the next request from nothing."""
        self._tokens, self._cache = [], None

    def take_seconds(self) -> float:
        """Seconds inside the model since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def nbytes(self) -> int:
        """Bytes of the attention cache."""
        layers = getattr(self._cache, "layers", ())
        held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(array.nbytes for array in held if array is not None)

    def _keep(self, prompt: np.ndarray) -> int:
        """Cut the cache to what it shares with `prompt`; how many tokens that is. One is always left over."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        limit = min(len(self._tokens), len(prompt) - 1)
        same = prompt[:limit] == np.asarray(self._tokens[:limit], dtype=prompt.dtype)
        shared = limit if same.all() else int(np.argmin(same))
        layers = getattr(self._cache, "layers", [None])
        # Only a cache that grows with the text can be cut; a sliding window or a recurrent state cannot.
        if shared == 0 or any(type(layer) is not DynamicLayer for layer in layers):
            self.forget()
            return 0
        cache = DynamicCache(config=self._model.config)
        for index, layer in enumerate(layers):
            cache.update(layer.keys[..., :shared, :], layer.values[..., :shared, :], index)
        self._tokens, self._cache = self._tokens[:shared], cache
        return shared
