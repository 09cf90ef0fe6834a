"""One loaded model and the rows that it works on. Lives on the engine's thread.

A row is *planned* (which beginning of its prompt is kept already, which is worth computing for others too), its prompt is
*read*, and then it is *decoded* beside the others. Prompts are read a piece at a time between decoding steps, so a long one
holds nobody up for more than one piece; rows whose prompts begin alike wait for one reading of that beginning.

What one row's grammar or text raises ends that row; what the model raises leaves the batch in an unknown state, and the
engine resets it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.decode import Decoding
from dspy_toolkit.lm.engine.prefill import Reading, group
from dspy_toolkit.lm.engine.prefixes import MINIMUM, PrefixTree
from dspy_toolkit.lm.engine.sequence import Outcome, Row
from dspy_toolkit.lm.models import cpu
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MemoryPlan, Pressure
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.models.weights import Weights, load_model

PIECE = {"cpu": 512}
"""Tokens read between two decoding steps, by device; a CPU takes most of a second for these."""
PIECE_ON_GPU = 2048
KEEP_FROM = 128
"""Tokens that a prompt must have read for itself to be kept whole: the next one may begin like it."""
LOOK_AHEAD = 256
"""Tokens that a row is expected to grow by; few replies use all that they are allowed."""


@dataclass
class _Work:
    """A reading, and the rows that are for it or after it."""

    reading: Reading
    rows: list[Row]
    """Whose prompts are read, one a row of the reading; none where it is a shared prefix."""
    kept: dict[int, np.ndarray]
    """Row of the reading → the tokens that are kept when it is done."""
    waiting: list[Row] = field(default_factory=list)
    """Rows that start from what is kept then."""


class Batch:
    """One loaded model, and its rows."""

    def __init__(
        self,
        weights_: Weights,
        tokenizer: Tokenizer,
        plan: MemoryPlan,
        hardware: Hardware,
    ) -> None:
        """Load the model.

        Args:
            plan: what rows, prefixes and buffers may take.

        Raises:
            ModelError: mlx_lm cannot load it.
        """
        import mlx.core as mx

        from dspy_toolkit.lm.engine.caches import divisible

        self.over: list[tuple[Row, Outcome]] = []
        """Rows that ended and why, until `take_over`; kept here so that a failing step loses none."""
        self._tokenizer, self._memory, self._device = tokenizer, plan, hardware.device
        self._piece = PIECE.get(hardware.device, PIECE_ON_GPU)
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
        """The packed prefix that was asked for last, and what it holds: rows of one prefix must get the same object."""
        self.computed_tokens = self.padding_tokens = self.prefix_hits = 0
        self.read_seconds = 0.0
        self._decoding = Decoding(self._model, tokenizer, hardware.device)
        self._work: deque[_Work] = deque()
        self._ready: list[tuple[Row, int, Any]] = []
        """(row, length of its prefix, prefix) of those that can be read; grouped as late as can be, for fuller groups."""

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
    def rows(self) -> list[Row]:
        """All rows that are read or decoded."""
        reading = (row for work in self._work for row in (*work.rows, *work.waiting))
        return [*reading, *(row for row, _, _ in self._ready), *self._decoding.rows]

    @property
    def counts(self) -> dict[str, Any]:
        """What was computed so far, by the names of `exchange.Snapshot`."""
        steps = self._decoding.counts
        return {
            "computed_tokens": self.computed_tokens,
            "padding_tokens": self.padding_tokens,
            "prefix_hits": self.prefix_hits,
            "read_seconds": self.read_seconds,
            "steps": steps.steps,
            "widths": steps.widths,
            "step_seconds": steps.seconds,
            "model_seconds": steps.model_seconds,
            "prefix_bytes": self.prefixes.nbytes,
            "cache_bytes": sum(cache.nbytes for cache in self._caches()),
        }

    def _caches(self) -> Iterable[Any]:
        yield from self._decoding.caches
        for work in self._work:
            yield from work.reading.caches

    def note(self, row: Row) -> None:
        """Look at a waiting row, so that those before it know what it shares with them."""
        self.prefixes.note(row.prompt)

    def has_room(self, row: Row, beside: Sequence[Row]) -> bool:
        """Whether `row` may join the running rows and those `beside` them. A row alone always may."""
        rows = [*self.rows, *beside]
        if not rows:
            return True
        if len(rows) >= self._pressure.width:
            return False
        tokens = sum(self._own(each) + min(each.room, LOOK_AHEAD) for each in (*rows, row))
        return tokens * self._token_bytes <= self._memory.kv_budget_bytes

    def _own(self, row: Row) -> int:
        """Prompt tokens that a row holds for itself."""
        return len(row.prompt) - (max(row.reused, self.prefixes.shared(row.prompt)) if self._shared else 0)

    def insert(self, rows: Sequence[Row]) -> None:
        """Start `rows`."""
        from dspy_toolkit.lm.engine.sampling import make_penalty, make_sampler

        for row in rows:
            request = row.request
            seed = request.seed if request.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
            row.sampler, row.penalty = make_sampler(request, seed % 2**32), make_penalty(request)
        with self._on_stream():
            self._plan(rows)

    def _plan(self, rows: Sequence[Row], computed: Sequence[tuple[np.ndarray, Any]] = ()) -> None:
        """Queue what `rows` need to be read: beginnings worth sharing first, the rest of each prompt after.

        Args:
            computed: (tokens, prefix) read just now for these rows; kept or not, they start from it.
        """
        for row in rows:
            length, kept = self.prefixes.longest(row.prompt)
            prefix = self._unpack(kept)
            for tokens, fresh in computed:
                if length < len(tokens) < len(row.prompt) and np.array_equal(tokens, row.prompt[: len(tokens)]):
                    length, prefix = len(tokens), fresh
            shared = self._boundary(row, self.prefixes.shared(row.prompt), length)
            # A little more to share than what is kept already is not worth a second copy of it.
            if shared > length + length // 8:
                tokens = row.prompt[:shared]
                work = self._being_read(tokens)
                if work is None:
                    reading = Reading(self._model, [tokens[length:]], [prefix], shared=self._shared)
                    work = _Work(reading, [], {0: tokens})
                    self._work.append(work)
                work.waiting.append(row)
            else:
                row.reused = min(length, row.prompt_size)
                self.prefix_hits += length > 0
                self._ready.append((row, length, prefix))

    def _boundary(self, row: Row, shared: int, kept: int) -> int:
        """How much of a row's prompt to compute for others.

        Of caches that cannot be cut, only prompts that begin with all of a prefix can use it. So what is shared is computed
        up to the end of the last whole message first: the next prompts will share that too.
        """
        if self._divisible or shared <= kept:
            return shared
        ends = [end for end in self._tokenizer.boundaries(row.request) if kept + kept // 8 < end <= shared]
        return ends[-1] if ends and ends[-1] >= MINIMUM else shared

    def _being_read(self, tokens: np.ndarray) -> _Work | None:
        """The work after which a prompt can start from `tokens`."""

        def serves(kept: np.ndarray) -> bool:
            beginning = kept[: len(tokens)] if self._divisible else kept
            return np.array_equal(beginning, tokens)

        return next((work for work in self._work if any(map(serves, work.kept.values()))), None)

    def _start_reading(self) -> None:
        """Begin to read the rows that fit best beside the one that is ready for longest."""
        # The last token is left for decoding: what follows it is the first choice.
        groups = group([len(row.prompt) - 1 - length for row, length, _ in self._ready])
        indices = set(next(indices for indices in groups if 0 in indices))
        # Rows of one prefix side by side: they read it together.
        members = sorted((self._ready[index] for index in indices), key=lambda member: id(member[2]))
        self._ready = [each for index, each in enumerate(self._ready) if index not in indices]
        reading = Reading(
            self._model,
            [row.prompt[length:-1] for row, length, _ in members],
            [prefix for _, _, prefix in members],
            shared=self._shared,
        )
        kept = {
            at: row.prompt[:-1]
            for at, (row, length, _) in enumerate(members)
            if len(row.prompt) - 1 - length >= KEEP_FROM
        }
        self._work.append(_Work(reading, [row for row, _, _ in members], kept))

    def step(self) -> None:
        """One token for each row that decodes, a piece of prompt for those that do not; what ends is put into `over`."""
        self.relieve()
        with self._on_stream():
            if self._decoding.rows:
                self.over += self._decoding.step()
            places = self._piece
            while places > 0 and (self._work or self._ready):
                if not self._work:
                    self._start_reading()
                places -= self._advance(self._work[0], max(places, self._piece // 2))

    def relieve(self) -> None:
        """Give up prefixes, then width, while the machine is short of memory."""
        import mlx.core as mx

        shed = self._pressure.ask()
        self.prefixes.budget_bytes = self._pressure.prefix_budget_bytes
        if shed == "prefixes":
            self.prefixes.shed(0)
            mx.clear_cache()

    def _advance(self, work: _Work, places: int) -> int:
        """Read on, and hand the rows over when all is read; the places of the model's input that this took."""
        reading, before, padding = work.reading, work.reading.computed, work.reading.padding
        if not reading.done:
            began = time.perf_counter()
            reading.advance(places)
            self.read_seconds += time.perf_counter() - began
        taken = reading.computed - before
        self.computed_tokens += taken
        self.padding_tokens += reading.padding - padding
        if reading.done:
            self._work.popleft()
            computed = [(tokens, self._keep(tokens, reading, at)) for at, tokens in work.kept.items()]
            if work.rows:
                self._decoding.join(work.rows, reading.caches)
            self._plan(work.waiting, computed)
        return taken

    def _keep(self, tokens: np.ndarray, reading: Reading, row: int) -> Any:
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
        """A kept prefix as rows start from it."""
        from dspy_toolkit.lm.engine.caches import compact
        from dspy_toolkit.lm.engine.quantized import unpack

        if kept is None or self._memory.kv_bits is None:
            return kept
        if self._unpacked[0] is not kept:
            self._unpacked = (kept, compact(unpack(kept)))
        return self._unpacked[1]

    def take_over(self) -> list[tuple[Row, Outcome]]:
        """The rows that ended since the last time, with why."""
        over, self.over = self.over, []
        return over

    def remove(self, gone: set[Row]) -> None:
        """Free rows."""
        with self._on_stream():
            if not gone.isdisjoint(self._decoding.rows):
                self._decoding.keep([at for at, row in enumerate(self._decoding.rows) if row not in gone])
            self._ready = [each for each in self._ready if each[0] not in gone]
            for work in list(self._work):
                work.waiting = [row for row in work.waiting if row not in gone]
                stay = [at for at, row in enumerate(work.rows) if row not in gone]
                if not (stay or (work.waiting and not work.rows)):
                    self._work.remove(work)
                    self._plan(work.waiting)
                elif len(stay) < len(work.rows):
                    work.reading.keep(stay)
                    # A row that waits for one that is gone is planned anew when the others are read.
                    work.kept = {new: work.kept[at] for new, at in enumerate(stay) if at in work.kept}
                    work.rows = [work.rows[at] for at in stay]

    def reset(self) -> None:
        """Drop all rows and prefixes."""
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
