"""What a vision model has read: a prompt with its images, then tokens.

mlx-vlm's recipe (`generate_step`): the model turns tokens and pixels into embeddings, its language model reads these, in
chunks where the model allows it, and then tokens alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PREFILL_CHUNK = 2048
"""Prompt tokens computed at once, mlx-vlm's own number; between two chunks a request can be given up."""


class Reading:
    """One model and the cache of one request. For the thread that loaded the model."""

    nbytes = 0
    """Nothing is kept from one request to the next."""

    def __init__(self, model: Any) -> None:
        self._model, self._language = model, model.language_model
        self.image_token: int | None = getattr(model.config, "image_token_index", None)
        """What stands for an image in a prompt, where the model says it."""
        self._cache: list[Any] = []
        self._options: dict[str, Any] = {}
        self._began: tuple[dict[str, Any], Sequence[int], Callable[[], None]] | None = None
        self._logits: Any = None
        self._since = 0
        self._seconds = 0.0

    def start(self, inputs: dict[str, Any], beginning: Sequence[int], check: Callable[[], None]) -> np.ndarray:
        """Logits, float32 of shape (vocabulary,), after a prompt and the tokens that a reply begins with.

        Args:
            inputs: of `VisionTokenizer.prepare`, or tokens and their mask alone.
            check: may raise, between two chunks.
        """
        from mlx_vlm.models.cache import make_prompt_cache  # pyright: ignore[reportMissingImports]

        self._began = inputs, beginning, check
        self._cache, self._options = make_prompt_cache(self._language), {}
        check()
        began = time.monotonic()
        try:
            self._logits = self._read(dict(inputs), check)
        finally:
            self._seconds += time.monotonic() - began
        if beginning:
            self._logits = self.feed(beginning)
        self._since = 0
        return self._logits

    def branch(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after the start and `tokens`, whatever was fed in between."""
        assert self._began is not None
        if self._since and all(layer.is_trimmable() for layer in self._cache):
            for layer in self._cache:
                layer.trim(self._since)
            self._since = 0
        elif self._since:
            self.start(*self._began)
        return self.feed(tokens) if tokens else self._logits

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after `tokens` as well."""
        import mlx.core as mx

        began = time.monotonic()
        logits = self._step(mx.array([list(tokens)]), None, self._options)
        self._since += len(tokens)
        self._seconds += time.monotonic() - began
        return logits

    def forget(self) -> None:
        """Give the cache back."""
        self._cache, self._options, self._began, self._logits, self._since = [], {}, None, None, 0

    def take_seconds(self) -> float:
        """Seconds inside the model since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _read(self, inputs: dict[str, Any], check: Callable[[], None]) -> np.ndarray:
        import mlx.core as mx

        ids, pixels, mask = (
            inputs.pop("input_ids"),
            inputs.pop("pixel_values", None),
            inputs.pop("attention_mask", None),
        )
        made = self._model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        beside = {
            name: value for name, value in made.to_dict().items() if name != "inputs_embeds" and value is not None
        }
        options, embedded, size = inputs | beside, made.inputs_embeds, made.inputs_embeds.shape[1]
        at = 0
        if size > 1 and self._reads_chunks(ids, embedded, options):
            # All but the last token: the logits of these are never looked at, and so never computed.
            while at < size - 1:
                check()
                end = min(at + PREFILL_CHUNK, size - 1)
                self._language(
                    ids[:, at:end],
                    inputs_embeds=embedded[:, at:end],
                    cache=self._cache,
                    n_to_process=end - at,
                    logits_to_keep=1,
                    **options,
                )
                mx.eval([layer.state for layer in self._cache])
                mx.clear_cache()
                at = end
        return self._step(ids[:, at:], embedded[:, at:], options)

    def _reads_chunks(self, ids: Any, embedded: Any, options: dict[str, Any]) -> bool:
        """Whether the model lets a prompt be read in parts: as mlx-vlm asks it, by attributes that some models have."""
        parts = (self._model, self._language)
        for part in parts:
            if callable(policy := getattr(part, "chunked_prefill_policy", None)):
                answer = policy(
                    input_ids=ids,
                    inputs_embeds=embedded,
                    prompt_cache=self._cache,
                    draft_model=None,
                    draft_kind=None,
                    prefill_kwargs=options,
                )
                return bool(getattr(answer, "enabled", answer))
        return not any(getattr(part, "no_chunked_prefill", False) for part in parts)

    def _step(self, ids: Any, embedded: Any, options: dict[str, Any]) -> np.ndarray:
        import mlx.core as mx

        seen = self._language(ids, inputs_embeds=embedded, cache=self._cache, logits_to_keep=1, **options)
        # What the next steps need beside tokens.
        names = ("cross_attention_states", "encoder_outputs")
        self._options = {name: found for name in names if (found := getattr(seen, name, None)) is not None}
        return np.array(seen.logits[0, -1].astype(mx.float32))
