"""Sequences whose prompts are not in the caches yet: which are prefilled next, and which wait for what they share.

A sequence that arrives is planned: it starts from the longest kept beginning of its prompt. Where it shares a much
longer beginning with another prompt, that beginning becomes a job of its own, computed once, and every sequence that
shares it waits for the job; when it is done each is planned again, and now starts from there. A sequence with nothing
to wait for is ready. Whenever no job is left, the ready ones of like length become the next job, and are handed on to
decoding when it is done.

Not covered: decoding, and how much is prefilled between two decoding steps (`batch`).
"""

from __future__ import annotations

import time
from collections import abc, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspy_toolkit.lm.engine.prefill import Prefill, group
from dspy_toolkit.lm.engine.prefixes import MINIMUM
from dspy_toolkit.lm.engine.sequence import Sequence

if TYPE_CHECKING:
    from dspy_toolkit.lm.engine.caches import Prefix
    from dspy_toolkit.lm.engine.footprint import Footprint
    from dspy_toolkit.lm.engine.prefix_cache import PrefixCache
    from dspy_toolkit.lm.models.tokenizer import Tokenizer

KEEP_FROM = 128
"""Tokens of its own that a prompt must have for all of it to be kept: the next one may begin like it."""


@dataclass
class PrefillCounts:
    """What prefilling took, all jobs together."""

    computed_tokens: int = 0
    """Input positions of the model, padding included."""
    padding_tokens: int = 0
    prefix_hits: int = 0
    """Sequences that started from a prefix."""
    seconds: float = 0.0


@dataclass(eq=False)
class _Ready:
    """A sequence that can be prefilled."""

    sequence: Sequence
    length: int
    """Tokens of its prompt that it starts with."""
    prefix: Prefix | None
    """Their caches."""

    @property
    def rest(self) -> np.ndarray:
        """The tokens to prefill. The prompt's last is left to decoding, since what follows it is the first choice."""
        return self.sequence.prompt[self.length : -1]


@dataclass(eq=False)
class _Row:
    """One row of a job."""

    sequence: Sequence | None
    """Whose prompt it is; None for a beginning that several share."""
    keep: np.ndarray | None
    """Tokens whose caches are kept when the job is done."""


@dataclass(eq=False)
class _Job:
    """Rows that are prefilled together, and the sequences that are planned again when they are done."""

    prefill: Prefill
    rows: list[_Row]
    waiting: list[Sequence] = field(default_factory=list)


class PrefillQueue:
    """The sequences of one batch that are not decoded yet. For the engine's thread only."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prefixes: PrefixCache,
        footprint: Footprint,
        *,
        shared: bool,
        share_from: float = 0,
        batchable: bool = True,
    ) -> None:
        """
        Args:
            prefixes: what is kept, and which prompts were seen.
            footprint: what rows take.
            shared, share_from: see `caches.start`.
            batchable: whether several rows can be computed together.
        """
        self.counts = PrefillCounts()
        self._footprint, self._batchable, self._share_from = footprint, batchable, share_from
        self._model, self._tokenizer, self._prefixes, self._shared = model, tokenizer, prefixes, shared
        self._ready: list[_Ready] = []
        self._jobs: deque[_Job] = deque()

    def __bool__(self) -> bool:
        """Whether there is anything to prefill."""
        return bool(self._ready or self._jobs)

    @property
    def sequences(self) -> list[Sequence]:
        """All that are here."""
        in_jobs = [row.sequence for job in self._jobs for row in job.rows if row.sequence is not None]
        waiting = [sequence for job in self._jobs for sequence in job.waiting]
        return [*in_jobs, *waiting, *(each.sequence for each in self._ready)]

    @property
    def caches(self) -> list[Any]:
        """Of the jobs."""
        return [cache for job in self._jobs for cache in job.prefill.caches]

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in."""
        self._plan(sequence, [])

    def _plan(self, sequence: Sequence, fresh: list[tuple[np.ndarray, Prefix]]) -> None:
        """Let a sequence wait for a beginning that it shares, or make it ready.

        Args:
            fresh: (tokens, their caches) that were computed just now. There may be no room to keep them; the sequences
                that waited for them start from them even so, or they would wait for ever.
        """
        prompt = sequence.prompt
        length, prefix = self._prefixes.find(prompt)
        for tokens, caches in fresh:
            if length < len(tokens) < len(prompt) and np.array_equal(tokens, prompt[: len(tokens)]):
                length, prefix = len(tokens), caches
        shared = self._shared_beginning(sequence, length)
        # A second copy of what is kept already is not worth its memory for an eighth more.
        if shared > length + length // 8:
            self._job_of(prompt[:shared], length, prefix).waiting.append(sequence)
            return
        sequence.reused = min(length, sequence.prompt_size)
        self.counts.prefix_hits += length > 0
        self._ready.append(_Ready(sequence, length, prefix))

    def _shared_beginning(self, sequence: Sequence, kept: int) -> int:
        """Tokens of a sequence's prompt that are worth computing for others too, of which `kept` are there already.

        A prefix whose caches cannot be cut serves only prompts that begin with all of it. So it ends where the last
        whole message ends that is shared: the next prompts will agree up to there, too.
        """
        shared = self._prefixes.shared(sequence.prompt)
        if self._prefixes.divisible or shared <= kept:
            return shared
        ends = [end for end in self._tokenizer.boundaries(sequence.request) if kept + kept // 8 < end <= shared]
        return ends[-1] if ends and ends[-1] >= MINIMUM else shared

    def _job_of(self, beginning: np.ndarray, length: int, prefix: Prefix | None) -> _Job:
        """The job after which prompts can start with `beginning`, whose first `length` tokens are those of `prefix`."""
        for job in self._jobs:
            if any(row.keep is not None and self._gives(row.keep, beginning) for row in job.rows):
                return job
        prefill = Prefill(self._model, [beginning[length:]], [prefix], shared=self._shared, share_from=self._share_from)
        self._jobs.append(_Job(prefill, [_Row(None, beginning)]))
        return self._jobs[-1]

    def _gives(self, kept: np.ndarray, beginning: np.ndarray) -> bool:
        return np.array_equal(kept[: len(beginning)] if self._prefixes.divisible else kept, beginning)

    def bytes_at_end(self, positions: int) -> float:
        """What the jobs that have begun take at most. Args: positions: as `advance`'s."""
        return sum(self._stored(job.prefill, positions) for job in self._jobs if job.prefill.caches)

    def _stored(self, prefill: Prefill, positions: int) -> float:
        width = min(prefill.rest, positions + positions // 4)
        return self._footprint.stored(prefill.rows, prefill.longest, max(width, 1))

    def advance(self, positions: int, room: float, *, must: bool) -> tuple[int, list[Sequence], list[Any]] | None:
        """Go on with the first job.

        Args:
            positions: about how many tokens to compute, padding included.
            room: bytes that a job may take that has not begun.
            must: begin one in any case, with as few rows as it takes.

        Returns:
            (positions computed, sequences that can be decoded now, their caches); None where there is no room to begin.
        """
        if not self._jobs:
            if (job := self._next_job(positions, room, must)) is None:
                return None
            self._jobs.append(job)
        job = self._jobs[0]
        prefill, computed, padding = job.prefill, job.prefill.computed, job.prefill.padding
        if not (must or prefill.caches) and self._stored(prefill, positions) > room:
            return None
        prefill.begin()
        if not prefill.done:  # a prompt may be in the caches already, but for its last token
            began = time.perf_counter()
            prefill.advance(positions)
            self.counts.seconds += time.perf_counter() - began
        computed = prefill.computed - computed
        self.counts.computed_tokens += computed
        self.counts.padding_tokens += prefill.padding - padding
        if not prefill.done:
            return computed, [], []
        self._jobs.popleft()
        fresh = [
            (row.keep, self._prefixes.keep_row(row.keep, prefill.caches, at))
            for at, row in enumerate(job.rows)
            if row.keep is not None
        ]
        for sequence in job.waiting:
            self._plan(sequence, fresh)
        return computed, [row.sequence for row in job.rows if row.sequence is not None], prefill.caches

    def _next_job(self, positions: int, room: float, must: bool) -> _Job | None:
        """A job of the sequence that is ready for longest, and of those that fit best beside it; None without room for it.

        They are grouped only now, not when they got ready: those that came meanwhile make the group fuller.
        """
        groups = group([len(each.rest) for each in self._ready])
        indices = sorted(next(indices for indices in groups if 0 in indices))
        count = len(indices) if self._batchable else 1
        while self._stored(prefill := self._prefill_of(indices[:count]), positions) > room:
            if count == 1 and not must:
                return None
            if count == 1:
                break
            count -= 1
        chosen = self._in_order(indices[:count])
        self._ready = [each for index, each in enumerate(self._ready) if index not in indices[:count]]
        rows = [
            _Row(each.sequence, each.sequence.prompt[:-1] if len(each.rest) >= KEEP_FROM else None) for each in chosen
        ]
        return _Job(prefill, rows)

    def _prefill_of(self, indices: abc.Sequence[int]) -> Prefill:
        chosen = self._in_order(indices)
        return Prefill(
            self._model,
            [each.rest for each in chosen],
            [each.prefix for each in chosen],
            shared=self._shared,
            share_from=self._share_from,
        )

    def _in_order(self, indices: abc.Sequence[int]) -> list[_Ready]:
        """`SharedKVCache` reads a prefix once for neighbouring rows: those of one prefix go side by side."""
        by_prefix: dict[int, list[_Ready]] = {}
        for each in (self._ready[index] for index in indices):
            by_prefix.setdefault(id(each.prefix), []).append(each)
        return [each for neighbours in by_prefix.values() for each in neighbours]

    def remove(self, gone: set[Sequence]) -> None:
        """Drop sequences, and what was computed for them alone."""
        self._ready = [each for each in self._ready if each.sequence not in gone]
        orphans: list[Sequence] = []
        for job in list(self._jobs):
            job.waiting = [sequence for sequence in job.waiting if sequence not in gone]
            # A shared beginning goes on while somebody waits for it.
            stay = [
                at
                for at, row in enumerate(job.rows)
                if (job.waiting if row.sequence is None else row.sequence not in gone)
            ]
            if not stay:
                self._jobs.remove(job)
                orphans += job.waiting
            elif len(stay) < len(job.rows):
                # A sequence that waits for a row which is gone is planned again when the other rows are done.
                job.prefill.keep(stay)
                job.rows = [job.rows[at] for at in stay]
        for sequence in orphans:
            self._plan(sequence, [])

    def clear(self) -> None:
        """Drop all sequences."""
        self._ready.clear()
        self._jobs.clear()
