"""The model and the rows that it is generating, over mlx_lm's `BatchGenerator`. Lives on the engine's thread.

A row enters with the longest remembered beginning of its prompt (`prefixes`), is decoded beside the others, and leaves when
it is over. What one row's grammar or text raises ends that row; what the model raises leaves the batch in an unknown state,
and the engine resets it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dspy_toolkit.errors import EngineFailed
from dspy_toolkit.lm.hardware import Hardware
from dspy_toolkit.lm.prefixes import PrefixStore
from dspy_toolkit.lm.rows import Outcome, Row, make_sampler
from dspy_toolkit.lm.weights import Weights, load_model

PREFILL_CHUNK = 512
"""Tokens of a shared prefix computed at once; between two chunks the engine can be told to stop."""
PREFILL_TOKENS = 2048
"""Prompt tokens of all rows together between two decoding steps; bounds how long a step takes."""
PREFIX_BUDGET = 256 * 2**20
"""Bytes of KV cache kept for shared prefixes."""
KV_BUDGET = 384 * 2**20
"""Bytes of KV cache of the running rows; mlx_lm holds up to three times as much while rows join and leave."""
LOOK_AHEAD = 256
"""Tokens that a row is expected to grow by; few replies use all that they are allowed."""
CACHE_LIMIT = 256 * 2**20
"""Bytes of freed buffers that MLX may keep for reuse."""


class Batch:
    """One loaded model, and its rows by the generator's ids."""

    def __init__(self, weights_: Weights, batch_size: int, hardware: Hardware, stopping: Callable[[], bool]) -> None:
        """Load the model.

        Args:
            batch_size: rows decoded together.
            stopping: asked during long work; true means that nobody waits for it any more.

        Raises:
            ModelError: mlx_lm cannot load it.
        """
        import mlx.core as mx

        self.rows: dict[int, Row] = {}
        self.over: list[tuple[Row, Outcome]] = []
        """Rows that ended and why, until `take_over`; kept here so that a failing step loses none."""
        self.prefixes = PrefixStore(PREFIX_BUDGET)
        self._batch_size, self._stopping = batch_size, stopping
        mx.set_cache_limit(CACHE_LIMIT)
        self._stream = mx.new_stream(mx.default_device())
        with mx.stream(self._stream):
            self._model, tokenizer = load_model(weights_, hardware.device)
        self._stop_tokens = [[token] for token in sorted(tokenizer.eos_token_ids)]
        self._generator: Any = None
        self._token_bytes = self._measure()
        self.reset()

    def _measure(self) -> float:
        """Bytes of KV cache that one token takes."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._model)
        with mx.stream(self._stream):
            self._model(mx.array([[0]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        held = [getattr(layer, name, None) for layer in cache for name in ("keys", "values")]
        # (batch, heads, tokens, width); caches of another shape do not grow with the tokens.
        return sum(
            array.nbytes / array.shape[2] for array in held if array is not None and getattr(array, "ndim", 0) == 4
        )

    def has_room(self, row: Row, beside: Sequence[Row]) -> bool:
        """Whether `row` may join the running rows and those `beside` them. A row alone always may."""
        rows = [*self.rows.values(), *beside]
        if not rows:
            return True
        tokens = sum(len(each.prompt) + min(each.room, LOOK_AHEAD) for each in (*rows, row))
        return len(rows) < self._batch_size and tokens * self._token_bytes <= KV_BUDGET

    def reset(self) -> None:
        """Drop all rows and prefixes and start with an empty batch."""
        from mlx_lm.generate import BatchGenerator

        if self._generator is not None:
            self._generator.close()
        self.rows.clear()
        self.over.clear()
        self.prefixes.clear()
        self._generator = BatchGenerator(
            self._model,
            stop_tokens=self._stop_tokens,
            completion_batch_size=self._batch_size,
            prefill_batch_size=self._batch_size,
            prefill_step_size=max(PREFILL_TOKENS // self._batch_size, 32),
            stream=self._stream,
        )

    def insert(self, rows: Sequence[Row], peers: Sequence[np.ndarray]) -> None:
        """Start `rows`; `peers` are prompts still waiting, which may share a beginning with them."""
        prompts = [row.prompt for row in rows]
        prepared = []
        for row in rows:
            length, cache = self._prefix(row.prompt, [*prompts, *peers])
            row.reused = min(length, row.prompt_size)
            prepared.append((row, length, cache))
        self.prefixes.remember(prompts)
        # Rows of like length are prefilled side by side, so that little of the batch is padding.
        prepared.sort(key=lambda item: len(item[0].prompt) - item[1])
        for row, length, cache in prepared:
            self.rows[self._start(row, length, cache)] = row

    def _start(self, row: Row, length: int, cache: Any) -> int:
        from mlx_lm.models.cache import make_prompt_cache

        tokens = row.prompt.tolist()
        request = row.request
        sampler = None
        if request.temperature > 0:
            seed = request.seed if request.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
            sampler = make_sampler(request.temperature, request.top_p, seed % 2**32)
        return self._generator.insert(
            [tokens[length:]],
            max_tokens=[row.room],
            caches=[cache if cache is not None else make_prompt_cache(self._model)],
            all_tokens=[tokens[:length]],
            samplers=[sampler],
            logits_processors=[[row.mask] if row.matcher is not None else []],
        )[0]

    def _prefix(self, prompt: np.ndarray, others: Sequence[np.ndarray]) -> tuple[int, Any]:
        """(length, cache) of the beginning to start from, computing and keeping it when others share it too."""
        length, cache = self.prefixes.longest(prompt)
        shared = self.prefixes.worth_sharing(prompt, others)
        # A little more to share than what is kept already is not worth a second copy of it.
        if shared > length + length // 8:
            length, cache = shared, self._compute(prompt[:shared], length, cache)
            self.prefixes.keep(prompt[:shared], cache, sum(layer.nbytes for layer in cache))
        return length, cache

    def _compute(self, tokens: np.ndarray, done: int, cache: Any) -> Any:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = copy.deepcopy(cache) if cache is not None else make_prompt_cache(self._model)
        with mx.stream(self._stream):
            for start in range(done, len(tokens), PREFILL_CHUNK):
                if self._stopping():
                    raise EngineFailed("The engine was closed while it read the prompt.")
                self._model(mx.array(tokens[start : start + PREFILL_CHUNK])[None], cache=cache)
                mx.eval([layer.state for layer in cache])
        return cache

    def step(self) -> None:
        """One token for each row that decodes, some prompt for each that does not; what ends is put into `over`."""
        _, responses = self._generator.next()
        for response in responses:
            row = self.rows[response.uid]
            outcome = row.take(response.token) or ("length" if response.finish_reason == "length" else None)
            if outcome is None:
                row.stream()
                continue
            self.over.append((row, outcome))
            if response.finish_reason is None:
                self.remove(response.uid)
            else:
                del self.rows[response.uid]

    def take_over(self) -> list[tuple[Row, Outcome]]:
        """The rows that ended since the last time, with why."""
        over, self.over = self.over, []
        return over

    def remove(self, uid: int) -> None:
        """Free a row."""
        import mlx.core as mx

        del self.rows[uid]
        with mx.stream(self._stream):
            self._generator.remove([uid])

    def free(self) -> None:
        """Give the model's memory back."""
        self._generator.close()
        self.rows.clear()
        self.prefixes.clear()
        del self._model, self._generator
