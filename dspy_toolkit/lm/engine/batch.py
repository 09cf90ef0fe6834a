"""One loaded model and the sequences that it works on together. Lives on the engine's thread.

A sequence waits in the `PrefillQueue` until its prompt is in the caches, and is then decoded beside the others, or, where
it has labels to score, scored. Each step takes one token of every sequence that is decoded, then a bounded part of the
prompts that wait, and then of what is scored: they delay the replies that are under way by no more than such a part.

What one sequence's grammar or text raises ends that sequence; what the model raises leaves the batch in an unknown
state, and the engine resets it.
"""

from __future__ import annotations

import copy
from collections import abc
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.decode import Decoding
from dspy_toolkit.lm.engine.prefill_queue import PrefillQueue
from dspy_toolkit.lm.engine.scoring import Scoring
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.models import cpu
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MemoryPlan, Pressure
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.models.weights import Weights, load_model

PREFILL_CHUNK = {"cpu": 512, "metal": 2048, "cuda": 2048}
"""Tokens prefilled between two decoding steps, by device; a CPU takes most of a second for these."""
LOOK_AHEAD = 256
"""Tokens that a sequence is expected to grow by; few replies use all that they are allowed."""


class Batch:
    """One loaded model, and its sequences."""

    def __init__(self, weights_: Weights, tokenizer: Tokenizer, plan: MemoryPlan, hardware: Hardware) -> None:
        """Load the model.

        Args:
            plan: what sequences, prefixes and buffers may take.

        Raises:
            ModelError: mlx_lm cannot load it.
        """
        import mlx.core as mx

        from dspy_toolkit.lm.engine.prefix_cache import PrefixCache

        self.over: list[tuple[Sequence, Outcome]] = []
        """Sequences that ended and why, until `take_over`; kept here so that a failing step loses none."""
        self._tokenizer, self._memory, self._device = tokenizer, plan, hardware.device
        self._chunk = PREFILL_CHUNK[hardware.device]
        mx.set_cache_limit(plan.cache_limit_bytes)
        if plan.wired_limit_bytes is not None:
            mx.set_wired_limit(plan.wired_limit_bytes)
        self._stream = mx.new_stream(mx.default_device())
        with self.on_stream():
            self._model, _ = load_model(weights_, hardware.device)
            self._token_bytes = self._measure()
        self._prefixes = PrefixCache(self._model, plan.prefix_budget_bytes, plan.kv_bits)
        # Only attention of our own knows how to read a prefix that is held once for several rows.
        self._shared = hardware.device == "cpu" and cpu.install(self._model) and self._prefixes.divisible
        self._pressure = Pressure(plan, hardware.device)
        self._prefills = PrefillQueue(self._model, tokenizer, self._prefixes, shared=self._shared)
        self._decoding = Decoding(self._model, tokenizer, hardware.device)
        self._scoring = Scoring(self._model, tokenizer.stop_tokens, hardware.device)

    def _measure(self) -> float:
        """Bytes of KV cache that one token takes; 0 for a model whose caches do not grow."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._model)
        self._model(mx.array([[0]]), cache=cache)
        mx.eval([layer.state for layer in cache])
        held = [getattr(layer, name, None) for layer in cache for name in ("keys", "values")]
        # (batch, heads, tokens, width); caches of another shape do not grow with the tokens.
        return sum(
            array.nbytes / array.shape[2] for array in held if array is not None and getattr(array, "ndim", 0) == 4
        )

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self._model

    def beside(self, prefixes_of: abc.Callable[[Any], Any]) -> Batch:
        """An empty batch on the same model, in the same memory, which counts into the same counters.

        Args:
            prefixes_of: gives its part of the kept prefixes.
        """
        other = copy.copy(self)
        other.over, other._prefixes = [], prefixes_of(self._prefixes)
        other._prefills = PrefillQueue(self._model, self._tokenizer, other._prefixes, shared=self._shared)
        other._prefills.counts = self._prefills.counts
        other.reset()  # what else holds sequences is made anew
        return other

    @property
    def sequences(self) -> list[Sequence]:
        """All that are prefilled, decoded or scored."""
        return [*self._prefills.sequences, *self._decoding.sequences, *self._scoring.sequences]

    @property
    def counts(self) -> dict[str, Any]:
        """What was computed so far, by the names of `protocol.EngineStats`."""
        steps, prefills = self._decoding.counts, self._prefills.counts
        return {
            "computed_tokens": prefills.computed_tokens,
            "padding_tokens": prefills.padding_tokens,
            "prefix_hits": prefills.prefix_hits,
            "prefill_model_seconds": prefills.seconds,
            "steps": steps.steps,
            "batched_rows": steps.batched_rows,
            "step_seconds": steps.seconds,
            "model_seconds": steps.model_seconds,
            "prefix_bytes": self._prefixes.nbytes,
            "scored_tokens": self._scoring.counts.tokens,
            "scoring_seconds": self._scoring.counts.seconds,
            "cache_bytes": self._cache_bytes(),
        }

    def _cache_bytes(self) -> int:
        caches = (*self._decoding.caches, *self._prefills.caches, *self._scoring.caches)
        return sum(cache.nbytes for cache in caches)

    def note(self, sequence: Sequence) -> None:
        """Look at a sequence that is not admitted yet, so that those before it know what it shares with them."""
        self._prefixes.note(sequence.prompt)

    def has_room(self, sequence: Sequence, beside: abc.Sequence[Sequence]) -> bool:
        """Whether `sequence` may join the running ones and those `beside` them. The first one always may."""
        running = [*self.sequences, *beside]
        if not running:
            return True
        if len(running) >= self._pressure.width:
            return False
        tokens = sum(self._own_tokens(each) + min(each.room, LOOK_AHEAD) for each in (*running, sequence))
        return tokens * self._token_bytes <= self._memory.kv_budget_bytes

    def _own_tokens(self, sequence: Sequence) -> int:
        """Tokens of its prompt that a sequence holds for itself: a prefix that is held once belongs to the prefixes."""
        shared = max(sequence.reused, self._prefixes.shared(sequence.prompt)) if self._shared else 0
        return len(sequence.prompt) - shared

    def insert(self, sequences: abc.Sequence[Sequence]) -> None:
        """Start `sequences`."""
        from dspy_toolkit.lm.engine.sampling import make_penalty, make_sampler

        with self.on_stream():
            for sequence in sequences:
                request = sequence.request
                seed = request.seed if request.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
                sequence.sampler, sequence.penalty = make_sampler(request, seed % 2**32), make_penalty(request)
                self._prefills.add(sequence)

    def step(self) -> None:
        """Take one token of each sequence that is decoded, prefill and score a chunk; what ends is put into `over`."""
        self.relieve()
        with self.on_stream():
            if self._decoding.sequences:
                self.over += self._decoding.step()
            left = self._chunk
            while left > 0 and self._prefills:
                # Half a chunk or more at a time: a pass over a few tokens takes nearly as long as one over many.
                computed, sequences, caches = self._prefills.advance(max(left, self._chunk // 2))
                left -= computed
                if sequences:
                    self._join(sequences, caches)
            if self._scoring.sequences:
                self.over += self._scoring.step(self._chunk, self._room(), self._own_tokens)

    def _join(self, sequences: abc.Sequence[Sequence], caches: list[Any]) -> None:
        """Go on with sequences whose prompts are in `caches`."""
        from dspy_toolkit.lm.engine.caches import branch

        scored = [at for at, sequence in enumerate(sequences) if sequence.spelling is not None]
        decoded = [at for at, sequence in enumerate(sequences) if sequence.spelling is None]
        for part, rows in ((self._scoring, scored), (self._decoding, decoded)):
            if rows:
                whole = len(rows) == len(sequences)
                part.join([sequences[row] for row in rows], caches if whole else branch(caches, rows, LOOK_AHEAD))

    def _room(self) -> float:
        """Tokens of KV cache that there is memory for beside what is held."""
        if self._token_bytes == 0:
            return float("inf")
        return (self._memory.kv_budget_bytes - self._cache_bytes()) / self._token_bytes

    def relieve(self) -> None:
        """Give up prefixes, then batch width, while the machine is short of memory."""
        import mlx.core as mx

        shed = self._pressure.ask()
        self._prefixes.budget_bytes = self._pressure.prefix_budget_bytes
        if shed == "prefixes":
            self._prefixes.shed(0)
            mx.clear_cache()

    def take_over(self) -> list[tuple[Sequence, Outcome]]:
        """The sequences that ended since the last time, with why."""
        over, self.over = self.over, []
        return over

    def remove(self, gone: set[Sequence]) -> None:
        """Free sequences."""
        with self.on_stream():
            for part in (self._decoding, self._scoring):
                if not gone.isdisjoint(part.sequences):
                    part.keep([at for at, each in enumerate(part.sequences) if each not in gone])
            self._prefills.remove(gone)

    def reset(self) -> None:
        """Drop all sequences and prefixes."""
        decoding, scoring = self._decoding.counts, self._scoring.counts
        self._decoding = Decoding(self._model, self._tokenizer, self._device)
        self._scoring = Scoring(self._model, self._tokenizer.stop_tokens, self._device)
        self._decoding.counts, self._scoring.counts = decoding, scoring
        self._prefills.clear()
        self._prefixes.clear()
        self.over.clear()

    def free(self) -> None:
        """Give the model's memory back."""
        self._prefixes.clear()
        del self._model, self._decoding, self._scoring, self._prefills

    def on_stream(self) -> Any:
        """What is computed inside is computed where the model is."""
        import mlx.core as mx

        return mx.stream(self._stream)
