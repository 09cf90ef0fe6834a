"""One loaded model and the sequences that it works on. Lives on the engine's thread.

A sequence is *planned* (which beginning of its prompt is kept already, which is worth computing for others too), its prompt is
*read*, and then it is *decoded* beside the others. Prompts are read a piece at a time between decoding steps, so a long one
holds nobody up for more than one piece; sequences whose prompts begin alike wait for one reading of that beginning.

What one sequence's grammar or text raises ends that sequence; what the model raises leaves the batch in an unknown state, and the
engine resets it.
"""

from __future__ import annotations

import time
from collections import abc, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.decode import Decoding
from dspy_toolkit.lm.engine.prefill import Prefill, group
from dspy_toolkit.lm.engine.prefixes import MINIMUM, PrefixTree
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.models import cpu
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MemoryPlan, Pressure
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.models.weights import Weights, load_model

PREFILL_CHUNK = {"cpu": 512}
"""Tokens read between two decoding steps, by device; a CPU takes most of a second for these."""
PREFILL_CHUNK_ON_GPU = 2048
KEEP_FROM = 128
"""Tokens that a prompt must have read for itself to be kept whole: the next one may begin like it."""
LOOK_AHEAD = 256
"""Tokens that a sequence is expected to grow by; few replies use all that they are allowed."""


@dataclass
class _Work:
    """A reading, and the sequences that are for it or after it."""

    reading: Prefill
    sequences: list[Sequence]
    """Whose prompts are read, one a sequence of the reading; none where it is a shared prefix."""
    kept: dict[int, np.ndarray]
    """Sequence of the reading → the tokens that are kept when it is done."""
    waiting: list[Sequence] = field(default_factory=list)
    """Rows that start from what is kept then."""


class Batch:
    """One loaded model, and its sequences."""

    def __init__(
        self,
        weights_: Weights,
        tokenizer: Tokenizer,
        plan: MemoryPlan,
        hardware: Hardware,
    ) -> None:
        """Load the model.

        Args:
            plan: what sequences, prefixes and buffers may take.

        Raises:
            ModelError: mlx_lm cannot load it.
        """
        import mlx.core as mx

        from dspy_toolkit.lm.engine.caches import divisible

        self.over: list[tuple[Sequence, Outcome]] = []
        """Rows that ended and why, until `take_over`; kept here so that a failing step loses none."""
        self._tokenizer, self._memory, self._device = tokenizer, plan, hardware.device
        self._chunk = PREFILL_CHUNK.get(hardware.device, PREFILL_CHUNK_ON_GPU)
        mx.set_cache_limit(plan.cache_limit_bytes)
        if plan.wired_limit_bytes is not None:
            mx.set_wired_limit(plan.wired_limit_bytes)
        self._stream = mx.new_stream(mx.default_device())
        with mx.stream(self._stream):
            self._model, _ = load_model(weights_, hardware.device)
            self._divisible = divisible(self._model)
            self._shared = hardware.device == "cpu" and cpu.install(self._model) and self._divisible
            self._token_bytes = self._measure()
        self.prefixes = PrefixTree(plan.prefix_budget_bytes, self._cut if self._divisible else None)
        self._pressure = Pressure(plan, hardware.device)
        self._unpacked: tuple[Any, Any] = (None, None)
        """The packed prefix that was asked for last, and what it holds: sequences of one prefix must get the same object."""
        self.computed_tokens = self.padding_tokens = self.prefix_hits = 0
        self.prefill_model_seconds = 0.0
        self._decoding = Decoding(self._model, tokenizer, hardware.device)
        self._work: deque[_Work] = deque()
        self._ready: list[tuple[Sequence, int, Any]] = []
        """(sequence, length of its prefix, prefix) of those that can be read; grouped as late as can be, for fuller groups."""

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
    def sequences(self) -> list[Sequence]:
        """All sequences that are read or decoded."""
        reading = (sequence for work in self._work for sequence in (*work.sequences, *work.waiting))
        return [*reading, *(sequence for sequence, _, _ in self._ready), *self._decoding.sequences]

    @property
    def counts(self) -> dict[str, Any]:
        """What was computed so far, by the names of `protocol.EngineStats`."""
        steps = self._decoding.counts
        return {
            "computed_tokens": self.computed_tokens,
            "padding_tokens": self.padding_tokens,
            "prefix_hits": self.prefix_hits,
            "prefill_model_seconds": self.prefill_model_seconds,
            "steps": steps.steps,
            "batched_rows": steps.batched_rows,
            "step_seconds": steps.seconds,
            "model_seconds": steps.model_seconds,
            "prefix_bytes": self.prefixes.nbytes,
            "cache_bytes": sum(cache.nbytes for cache in self._caches()),
        }

    def _caches(self) -> Iterable[Any]:
        yield from self._decoding.caches
        for work in self._work:
            yield from work.reading.caches

    def note(self, sequence: Sequence) -> None:
        """Look at a waiting sequence, so that those before it know what it shares with them."""
        self.prefixes.note(sequence.prompt)

    def has_room(self, sequence: Sequence, beside: abc.Sequence[Sequence]) -> bool:
        """Whether `sequence` may join the running sequences and those `beside` them. A sequence alone always may."""
        sequences = [*self.sequences, *beside]
        if not sequences:
            return True
        if len(sequences) >= self._pressure.width:
            return False
        tokens = sum(self._own(each) + min(each.room, LOOK_AHEAD) for each in (*sequences, sequence))
        return tokens * self._token_bytes <= self._memory.kv_budget_bytes

    def _own(self, sequence: Sequence) -> int:
        """Prompt tokens that a sequence holds for itself."""
        return len(sequence.prompt) - (
            max(sequence.reused, self.prefixes.shared(sequence.prompt)) if self._shared else 0
        )

    def insert(self, sequences: abc.Sequence[Sequence]) -> None:
        """Start `sequences`."""
        from dspy_toolkit.lm.engine.sampling import make_penalty, make_sampler

        for sequence in sequences:
            request = sequence.request
            seed = request.seed if request.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
            sequence.sampler, sequence.penalty = make_sampler(request, seed % 2**32), make_penalty(request)
        with self._on_stream():
            self._plan(sequences)

    def _plan(self, sequences: abc.Sequence[Sequence], computed: abc.Sequence[tuple[np.ndarray, Any]] = ()) -> None:
        """Queue what `sequences` need to be read: beginnings worth sharing first, the rest of each prompt after.

        Args:
            computed: (tokens, prefix) read just now for these sequences; kept or not, they start from it.
        """
        for sequence in sequences:
            length, kept = self.prefixes.longest(sequence.prompt)
            prefix = self._unpack(kept)
            for tokens, fresh in computed:
                if length < len(tokens) < len(sequence.prompt) and np.array_equal(
                    tokens, sequence.prompt[: len(tokens)]
                ):
                    length, prefix = len(tokens), fresh
            shared = self._boundary(sequence, self.prefixes.shared(sequence.prompt), length)
            # A little more to share than what is kept already is not worth a second copy of it.
            if shared > length + length // 8:
                tokens = sequence.prompt[:shared]
                work = self._being_read(tokens)
                if work is None:
                    reading = Prefill(self._model, [tokens[length:]], [prefix], shared=self._shared)
                    work = _Work(reading, [], {0: tokens})
                    self._work.append(work)
                work.waiting.append(sequence)
            else:
                sequence.reused = min(length, sequence.prompt_size)
                self.prefix_hits += length > 0
                self._ready.append((sequence, length, prefix))

    def _boundary(self, sequence: Sequence, shared: int, kept: int) -> int:
        """How much of a sequence's prompt to compute for others.

        Of caches that cannot be cut, only prompts that begin with all of a prefix can use it. So what is shared is computed
        up to the end of the last whole message first: the next prompts will share that too.
        """
        if self._divisible or shared <= kept:
            return shared
        ends = [end for end in self._tokenizer.boundaries(sequence.request) if kept + kept // 8 < end <= shared]
        return ends[-1] if ends and ends[-1] >= MINIMUM else shared

    def _being_read(self, tokens: np.ndarray) -> _Work | None:
        """The work after which a prompt can start from `tokens`."""

        def serves(kept: np.ndarray) -> bool:
            beginning = kept[: len(tokens)] if self._divisible else kept
            return np.array_equal(beginning, tokens)

        return next((work for work in self._work if any(map(serves, work.kept.values()))), None)

    def _start_reading(self) -> None:
        """Begin to read the sequences that fit best beside the one that is ready for longest."""
        # The last token is left for decoding: what follows it is the first choice.
        groups = group([len(sequence.prompt) - 1 - length for sequence, length, _ in self._ready])
        indices = set(next(indices for indices in groups if 0 in indices))
        # Rows of one prefix side by side: they read it together.
        members = sorted((self._ready[index] for index in indices), key=lambda member: id(member[2]))
        self._ready = [each for index, each in enumerate(self._ready) if index not in indices]
        reading = Prefill(
            self._model,
            [sequence.prompt[length:-1] for sequence, length, _ in members],
            [prefix for _, _, prefix in members],
            shared=self._shared,
        )
        kept = {
            at: sequence.prompt[:-1]
            for at, (sequence, length, _) in enumerate(members)
            if len(sequence.prompt) - 1 - length >= KEEP_FROM
        }
        self._work.append(_Work(reading, [sequence for sequence, _, _ in members], kept))

    def step(self) -> None:
        """One token for each sequence that decodes, a piece of prompt for those that do not; what ends is put into `over`."""
        self.relieve()
        with self._on_stream():
            if self._decoding.sequences:
                self.over += self._decoding.step()
            places = self._chunk
            while places > 0 and (self._work or self._ready):
                if not self._work:
                    self._start_reading()
                places -= self._advance(self._work[0], max(places, self._chunk // 2))

    def relieve(self) -> None:
        """Give up prefixes, then width, while the machine is short of memory."""
        import mlx.core as mx

        shed = self._pressure.ask()
        self.prefixes.budget_bytes = self._pressure.prefix_budget_bytes
        if shed == "prefixes":
            self.prefixes.shed(0)
            mx.clear_cache()

    def _advance(self, work: _Work, places: int) -> int:
        """Read on, and hand the sequences over when all is read; the places of the model's input that this took."""
        reading, before, padding = work.reading, work.reading.computed, work.reading.padding
        if not reading.done:
            began = time.perf_counter()
            reading.advance(places)
            self.prefill_model_seconds += time.perf_counter() - began
        taken = reading.computed - before
        self.computed_tokens += taken
        self.padding_tokens += reading.padding - padding
        if reading.done:
            self._work.popleft()
            computed = [(tokens, self._keep(tokens, reading, at)) for at, tokens in work.kept.items()]
            if work.sequences:
                self._decoding.join(work.sequences, reading.caches)
            self._plan(work.waiting, computed)
        return taken

    def _keep(self, tokens: np.ndarray, reading: Prefill, row: int) -> Any:
        """Keep what one row of a reading has left in the caches, and give it."""
        import mlx.core as mx

        from dspy_toolkit.lm.engine.caches import compact

        prefix = compact([cache.extract(row) for cache in reading.caches])
        mx.eval([layer.state for layer in prefix])
        self.prefixes.keep(tokens, *self._pack(prefix))
        return prefix

    def _cut(self, kept: Any, length: int) -> tuple[Any, int]:
        from dspy_toolkit.lm.engine.caches import cut

        return self._pack(cut(self._unpack(kept), length))

    def _pack(self, prefix: Any) -> tuple[Any, int]:
        """(a prefix as it is kept, its bytes)."""
        from dspy_toolkit.lm.engine.caches import size_of
        from dspy_toolkit.lm.engine.quantized import pack

        if (bits := self._memory.kv_bits) is None:
            return prefix, size_of(prefix)
        packed = pack(prefix, bits)
        return packed, size_of(packed)

    def _unpack(self, kept: Any) -> Any:
        """A kept prefix as sequences start from it."""
        from dspy_toolkit.lm.engine.caches import compact
        from dspy_toolkit.lm.engine.quantized import unpack

        if kept is None or self._memory.kv_bits is None:
            return kept
        if self._unpacked[0] is not kept:
            self._unpacked = (kept, compact(unpack(kept)))
        return self._unpacked[1]

    def take_over(self) -> list[tuple[Sequence, Outcome]]:
        """The sequences that ended since the last time, with why."""
        over, self.over = self.over, []
        return over

    def remove(self, gone: set[Sequence]) -> None:
        """Free sequences."""
        with self._on_stream():
            if not gone.isdisjoint(self._decoding.sequences):
                self._decoding.keep(
                    [at for at, sequence in enumerate(self._decoding.sequences) if sequence not in gone]
                )
            self._ready = [each for each in self._ready if each[0] not in gone]
            for work in list(self._work):
                work.waiting = [sequence for sequence in work.waiting if sequence not in gone]
                stay = [at for at, sequence in enumerate(work.sequences) if sequence not in gone]
                if not (stay or (work.waiting and not work.sequences)):
                    self._work.remove(work)
                    self._plan(work.waiting)
                elif len(stay) < len(work.sequences):
                    work.reading.keep(stay)
                    # A sequence that waits for one that is gone is planned anew when the others are read.
                    work.kept = {new: work.kept[at] for new, at in enumerate(stay) if at in work.kept}
                    work.sequences = [work.sequences[at] for at in stay]

    def reset(self) -> None:
        """Drop all sequences and prefixes."""
        counts = self._decoding.counts
        self._decoding = Decoding(self._model, self._tokenizer, self._device)
        self._decoding.counts = counts
        self._work.clear()
        self._ready.clear()
        self.over.clear()
        self.prefixes.clear()

    def free(self) -> None:
        """Give the model's memory back."""
        self._work.clear()
        self._ready.clear()
        self.prefixes.clear()
        del self._model, self._decoding

    def _on_stream(self) -> Any:
        import mlx.core as mx

        return mx.stream(self._stream)
