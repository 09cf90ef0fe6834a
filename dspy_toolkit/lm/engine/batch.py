"""One loaded model and the sequences that it works on together. Lives on the engine's thread.

A sequence waits in the `PrefillQueue` until its prompt is in the caches, and is then decoded beside the others, or, where
it has labels to score, scored. Each step takes one token of every sequence that is decoded, then a bounded part of the
prompts that wait, and then of what is scored: they delay the replies that are under way by no more than such a part.

What one sequence's grammar or text raises ends that sequence; what the model raises leaves the batch in an unknown
state, and the engine resets it.
"""

from __future__ import annotations

import copy
import logging
from collections import abc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from dspy_toolkit.lm.engine import sharing
from dspy_toolkit.lm.engine.decode import Decoding
from dspy_toolkit.lm.engine.footprint import length_of, measure
from dspy_toolkit.lm.engine.groups import Groups
from dspy_toolkit.lm.engine.pipeline import PipelinedDecoding
from dspy_toolkit.lm.engine.prefill_queue import PrefillQueue
from dspy_toolkit.lm.engine.rules import Rules
from dspy_toolkit.lm.engine.sampling import seed_of
from dspy_toolkit.lm.engine.scoring import Scoring
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.models import cpu
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MemoryPlan, Pressure, size
from dspy_toolkit.lm.models.process_memory import PROCESS
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.models.weights import Weights, load_model

log = logging.getLogger(__name__)

LOOK_AHEAD = 256
"""Tokens that a sequence is expected to grow by; few replies use all that they are allowed."""


class Batch:
    """One loaded model, and its sequences."""

    def __init__(
        self, weights_: Weights, tokenizer: Tokenizer, plan: MemoryPlan, hardware: Hardware, rules: Rules
    ) -> None:
        """Load the model.

        Args:
            plan: what sequences, prefixes and buffers may take.
            rules: how much is done at once.

        Raises:
            ModelError: mlx_lm cannot load it.
        """
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        from dspy_toolkit.lm.engine.caches import batchable
        from dspy_toolkit.lm.engine.prefix_cache import PrefixCache

        self.pauses = 0
        """Times that a sequence gave up its caches for others."""
        self.over: list[tuple[Sequence, Outcome]] = []
        """Sequences that ended and why, until `take_over`; kept here so that a failing step loses none."""
        self._tokenizer, self._plan, self._device = tokenizer, plan, hardware.device
        self._rules = rules
        freed, wired = PROCESS.limits(plan)
        mx.set_cache_limit(freed)
        if wired is not None:
            mx.set_wired_limit(wired)
        self._stream = mx.new_stream(mx.default_device())
        with self.on_stream():
            self._model, _ = load_model(weights_, hardware.device)
            self._footprint = measure(self._model)
        self._prefixes = PrefixCache(self._model, plan.prefix_budget_bytes, plan.kv_bits)
        self._batchable, self._layers = batchable(self._model), len(make_prompt_cache(self._model))
        # Only attention of our own knows how to read a prefix that is held once for several rows.
        if hardware.device == "cpu":
            self._shared, self._share_from = cpu.install(self._model) and self._prefixes.divisible, 0.0
        else:
            with self.on_stream():
                self._share_from = sharing.share_from(self._model)
            self._shared = self._batchable and self._share_from < float("inf")
        if self._shared and self._footprint.windows:
            self._footprint = replace(self._footprint, whole_windows=True)
        self._pressure = Pressure(plan, hardware.device)
        self._held: WeakKeyDictionary[Batch, float] = WeakKeyDictionary()
        """What each batch of this model takes at most."""
        self._start_empty()

    def _start_empty(self) -> None:
        self._prefills = PrefillQueue(
            self._model,
            self._tokenizer,
            self._prefixes,
            self._footprint,
            shared=self._shared,
            share_from=self._share_from,
            batchable=self._batchable,
        )
        self._decoding = Groups(self._new_decoding, self._footprint, self._plan.model_bytes)
        self._scoring = Scoring(self._model, self._tokenizer.stop_tokens, self._device)
        self._paused: list[Sequence] = []
        """Given up their caches for others, the oldest first; they go on when there is room."""

    def _new_decoding(self) -> Decoding:
        kind = Decoding if self._device == "cpu" else PipelinedDecoding
        return kind(self._model, self._tokenizer, self._device, self._rules.fill)

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
        other._start_empty()
        other._count_like(self)
        return other

    def _count_like(self, other: Batch) -> None:
        """Count into the counters of another."""
        self._prefills.counts = other._prefills.counts
        self._decoding.counts, self._scoring.counts = other._decoding.counts, other._scoring.counts

    @property
    def sequences(self) -> list[Sequence]:
        """All that are prefilled, decoded or scored, or wait to go on."""
        return [*self._paused, *self._prefills.sequences, *self._decoding.sequences, *self._scoring.sequences]

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
        return sum(cache.nbytes for cache in caches) + self._unkept_bytes()

    def _unkept_bytes(self) -> int:
        """Of prefixes that only running sequences hold on to."""
        if not self._shared:
            return 0
        layers = self._layers
        caches = [*self._decoding.caches, *self._prefills.caches, *self._scoring.caches]
        batches = [caches[at : at + layers] for at in range(0, len(caches), layers)]
        return self._prefixes.unkept_bytes(batches)

    def note(self, sequence: Sequence) -> None:
        """Look at a sequence that is not admitted yet, so that those before it know what it shares with them."""
        self._prefixes.note(sequence.prompt)

    def has_room(self, sequence: Sequence, beside: abc.Sequence[Sequence]) -> bool:
        """Whether `sequence` may join the running ones and those `beside` them. The first one always may."""
        running = [*self.sequences, *beside]
        if not running:
            return True
        if self._paused or len(running) >= (self._pressure.width if self._batchable else 1):
            return False
        return self._fits([*beside, sequence], PROCESS.in_force(self._plan).kv_budget_bytes)

    def _fits(self, joining: abc.Sequence[Sequence], budget: float) -> bool:
        """Whether `budget` has room for all that runs and for those `joining`, each a little longer than it is now."""

        def ahead(sequences: abc.Sequence[Sequence]) -> int:
            return min(max(each.room for each in sequences), LOOK_AHEAD)

        waiting = [*self._prefills.sequences, *self._scoring.sequences, *joining]
        alone = sum(self._footprint.stored(1, self._own_tokens(each) + ahead([each])) for each in waiting)
        return alone + self._decoding.bytes_after(ahead) <= budget - self._unkept_bytes()

    @property
    def _budget(self) -> float:
        """Bytes for this batch's sequences, beside those of other adapters."""
        others = sum(held for batch, held in self._held.items() if batch is not self)
        return PROCESS.in_force(self._plan).kv_budget_bytes - others

    def _own_tokens(self, sequence: Sequence) -> int:
        """Tokens of its prompt that a sequence holds for itself: a prefix that is held once belongs to the prefixes."""
        shared = max(sequence.reused, self._prefixes.shared(sequence.prompt)) if self._shared else 0
        return len(sequence.prompt) - (shared if shared >= self._share_from else 0)

    def insert(self, sequences: abc.Sequence[Sequence]) -> None:
        """Start `sequences`."""
        with self.on_stream():
            for sequence in sequences:
                sequence.seed = seed_of(sequence.request.seed, sequence.prompt[: sequence.prompt_size])
                self._prefills.add(sequence)

    def step(self) -> None:
        """Take one token of each sequence that is decoded, prefill and score a chunk; what ends is put into `over`."""
        self.relieve()
        with self.on_stream():
            self._resume()
            self._make_room()
            if self._decoding.sequences:
                self.over += self._decoding.step(self._room())
            left = self._rules.chunk
            while left > 0 and self._prefills:
                # Half a chunk or more at a time: a pass over a few tokens takes nearly as long as one over many.
                alone = not (self._decoding.sequences or self._scoring.sequences or self._prefills.caches)
                begun = self._prefills.advance(max(left, self._rules.chunk // 2), self._room(), must=alone)
                if begun is None:
                    break
                computed, sequences, caches = begun
                left -= computed
                if sequences:
                    self._join(sequences, caches)
            if self._scoring.sequences:
                self._score()
        self._held[self] = self._most_bytes()

    def _join(self, sequences: abc.Sequence[Sequence], caches: list[Any]) -> None:
        """Go on with sequences whose prompts are in `caches`."""
        from dspy_toolkit.lm.engine.caches import branch

        scored = [at for at, sequence in enumerate(sequences) if sequence.spelling is not None]
        decoded = [at for at, sequence in enumerate(sequences) if sequence.spelling is None]
        for join, rows in ((self._join_scoring, scored), (self._join_decoding, decoded)):
            if rows:
                whole = len(rows) == len(sequences)
                join([sequences[row] for row in rows], caches if whole else branch(caches, rows, LOOK_AHEAD))

    def _join_decoding(self, sequences: list[Sequence], caches: list[Any]) -> None:
        rows = self._footprint.stored(len(sequences), length_of(caches))
        self._decoding.join(sequences, caches, self._budget - self._most_bytes() - rows)

    def _join_scoring(self, sequences: list[Sequence], caches: list[Any]) -> None:
        stored, length = self._footprint.stored, length_of(caches)
        while self._scoring.sequences:
            together = max(length, length_of(self._scoring.caches))
            rows = len(self._scoring.sequences)
            padding = stored(rows + len(sequences), together) - stored(rows, length_of(self._scoring.caches))
            if self._most_bytes() + padding <= self._budget:
                break
            self._score()  # those before end first
        self._scoring.join(sequences, caches)

    def _score(self) -> None:
        token = self._footprint.growing
        room = (self._budget - self._cache_bytes()) / token if token else float("inf")
        self.over += self._scoring.step(self._rules.chunk, room, self._own_tokens)

    def _most_bytes(self) -> float:
        """What all that runs takes at most after the next step."""
        scoring = self._footprint.stored(len(self._scoring.sequences), length_of(self._scoring.caches))
        prefills = self._prefills.bytes_at_end(self._rules.chunk)
        return self._decoding.bytes_after(_next_width) + prefills + scoring + self._unkept_bytes()

    def _room(self) -> float:
        """Bytes that there are beside what runs."""
        return self._budget - self._most_bytes()

    def _make_room(self) -> None:
        """Pause sequences, the youngest first, until the next step fits. The last one runs on: the plan has room for one."""
        while self._most_bytes() > self._budget:
            running = self._decoding.sequences
            if len(running) < 2 and not (running and self._prefills.caches):
                return
            youngest = max(running, key=lambda sequence: sequence.started)
            self._decoding.remove({youngest})
            youngest.start_over()
            self._paused.append(youngest)
            self._paused.sort(key=lambda sequence: sequence.started)
            self.pauses += 1
            log.info("A sequence of %d tokens waits for memory (%s).", len(youngest.prompt), size(self._budget))

    def _resume(self) -> None:
        """Let paused sequences go on, the oldest first, while there is room."""
        while self._paused:
            others = self._decoding.sequences or self._scoring.sequences or self._prefills
            if others and not self._fits(self._paused[:1], self._budget):
                return
            self._prefills.add(self._paused.pop(0))

    def relieve(self) -> None:
        """Give up prefixes, then batch width, while the machine is short of memory."""
        import mlx.core as mx

        shed = self._pressure.ask()
        most = PROCESS.in_force(self._plan).prefix_budget_bytes
        self._prefixes.budget_bytes = min(self._pressure.prefix_budget_bytes, most)
        if shed == "prefixes":
            self._prefixes.shed(0)
            mx.clear_cache()
        elif self._prefixes.nbytes > most:  # another model has come
            self._prefixes.shed(most)

    def take_over(self) -> list[tuple[Sequence, Outcome]]:
        """The sequences that ended since the last time, with why."""
        over, self.over = self.over, []
        return over

    def remove(self, gone: set[Sequence]) -> None:
        """Free sequences."""
        with self.on_stream():
            self._decoding.remove(gone)
            if not gone.isdisjoint(self._scoring.sequences):
                self._scoring.keep([at for at, each in enumerate(self._scoring.sequences) if each not in gone])
            self._prefills.remove(gone)
        self._paused = [sequence for sequence in self._paused if sequence not in gone]

    def reset(self) -> None:
        """Drop all sequences and prefixes."""
        before = copy.copy(self)
        self._start_empty()
        self._count_like(before)
        self._prefixes.clear()
        self._held.clear()
        self.over.clear()

    def free(self) -> None:
        """Give the model's memory back."""
        self._prefixes.clear()
        del self._model, self._decoding, self._scoring, self._prefills

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """What is computed inside is computed where the model is."""
        import mlx.core as mx

        with mx.stream(self._stream), cpu.leave_to_mlx(self._device != "cpu"):
            yield


def _next_width(sequences: abc.Sequence[Sequence]) -> int:
    """Tokens that a step feeds at most, of what is pending."""
    return max((len(sequence.pending) for sequence in sequences), default=1) or 1
