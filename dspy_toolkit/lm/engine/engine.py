"""The MLX engine: one model, one thread, many requests decoded together.

The engine's own thread (`thread`) loads the model, runs every step and frees the model, since MLX's streams belong to a
thread. Sequences join and leave the batch between two steps (`batch`).

Covered, beside what every engine covers: cancelling at the next step; an exception that ends one request only; one of
the whole batch, which ends what is running and leaves the engine usable; adapters that requests name, on the one model
(`lanes`); vectors of texts, of the model without an adapter (`embedding`). Not covered: several models in one thread.
Deadlines and cancelling take effect between two steps, not inside one, nor while the model is loaded.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import abc, deque
from concurrent.futures import Future
from typing import Any

from dspy_toolkit.errors import EngineBusy, RequestRefused, ToolkitError
from dspy_toolkit.lm.engine.batch import Batch
from dspy_toolkit.lm.engine.embedding import EmbeddingJob
from dspy_toolkit.lm.engine.lanes import Lanes
from dspy_toolkit.lm.engine.rules import DEFAULT, Rules
from dspy_toolkit.lm.engine.sequence import Sequence
from dspy_toolkit.lm.engine.thread import EngineThread
from dspy_toolkit.lm.models.adapters import find_adapter
from dspy_toolkit.lm.models.hardware import Hardware, held_bytes, inspect_hardware
from dspy_toolkit.lm.models.memory import plan_model
from dspy_toolkit.lm.models.process_memory import PROCESS
from dspy_toolkit.lm.models.tokenizer import load_tokenizer
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.lm.protocol import Embeddings, GenerationRequest
from dspy_toolkit.settings import LMSettings

log = logging.getLogger(__name__)


class Engine(EngineThread):
    """One model behind one thread. Loading starts with the first request."""

    label = "engine"

    def __init__(
        self, weights_: Weights, settings: LMSettings, hardware: Hardware | None = None, rules: Rules | None = None
    ) -> None:
        """Args:
        weights_: what to load.
        settings: batch, queue, deadline, lease and memory limits.
        hardware: where; this machine by default.
        rules: how much is done at once; by default what its device gets.

        Raises:
            ModelTooLarge: the weights and one sequence do not fit in memory.
            ModelError: the tokenizer cannot be read.
        """
        self._weights, self._hardware = weights_, hardware or inspect_hardware()
        self._rules = rules or DEFAULT[self._hardware.device]
        settings = self._rules.applied(settings)
        tokenizer = load_tokenizer(weights_.folder, weights_.sha256)
        self._plan = PROCESS.join(
            lambda seen, taken: plan_model(weights_, seen, settings, taken), self._hardware, held_bytes
        )
        self._leave = weakref.finalize(self, PROCESS.leave, self._plan)
        super().__init__(weights_.name, tokenizer, settings, self._plan.context_size)
        self._arrived: deque[Sequence] = deque()  # of the waiting, those that the batch has not looked at yet
        self._embeddings: deque[EmbeddingJob] = deque()
        self._batch: Lanes | None = None
        self._counted: dict[str, Any] = {}
        """What this batch had computed when it was counted last."""

    def embed(self, texts: abc.Sequence[str], deadline_seconds: float | None = None) -> Future[Embeddings]:
        """As of every engine: see `embedding` for what the vectors are."""
        tokens = [self._tokenizer.encode_text(text) for text in texts]
        if empty := [at for at, text in enumerate(tokens) if not text]:
            raise RequestRefused(f"Text {empty[0] + 1} of {len(tokens)} is empty. Leave it out.")
        if not tokens:
            raise RequestRefused("There is no text to embed. Give one or more.")
        self._check_length(max(len(text) for text in tokens), 0)
        limit = min(deadline_seconds or self._settings.timeout, self._settings.timeout)
        job = EmbeddingJob(tokens, limit, self._rules.chunk)
        with self._condition:
            if self._closing:
                raise self._closed_early()
            if len(self._embeddings) >= self._settings.queue_size:
                raise EngineBusy(f"{len(self._embeddings)} requests for vectors wait (lm.queue_size). Try again later.")
            self._embeddings.append(job)
            self._wake()
        return job.future

    def _has_more(self) -> bool:
        return bool(self._embeddings)

    def _end(self, error: BaseException) -> None:
        super()._end(error)
        with self._condition:
            left, self._embeddings = self._embeddings, deque()
        for job in left:
            job.fail(self._failure(error))

    def _embed(self, batch: Lanes) -> None:
        """Compute a part of the vectors that wait for longest."""
        with self._condition:
            job = self._embeddings[0] if self._embeddings else None
        if job is not None and job.advance(batch.embed):
            with self._condition:
                self._embeddings.remove(job)

    def _check_adapter(self, request: GenerationRequest) -> GenerationRequest:
        if request.adapter is None:
            return request
        if self._weights.adapters is None:
            return super()._check_adapter(request)
        found = find_adapter(self._weights.adapters.parent, request.adapter, self._weights.sha256)
        return request.model_copy(update={"adapter": found.sha256})

    def _check_length(self, prompt: int, reply: int) -> None:
        self.context_size = PROCESS.in_force(self._plan).context_size  # other models may have come or gone
        super()._check_length(prompt, reply)

    def close(self) -> None:
        """As every engine's; its memory is the other engines' again."""
        super().close()
        self._leave()

    def _enqueue(self, sequence: Sequence) -> None:
        super()._enqueue(sequence)
        self._arrived.append(sequence)

    def _serve(self) -> None:
        self._take_lease(self._hardware.device)
        self._counted = {}
        base = Batch(self._weights, self._tokenizer, self._plan, self._hardware, self._rules)
        self._batch = batch = Lanes(base, self._weights.adapters)
        while self._wait_for_work():
            self._turn(batch)

    def _free(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.free()
        _clear_streams()

    def _turn(self, batch: Lanes) -> None:
        """End what is overdue or cancelled, admit what fits, and take one step."""
        self._give_up_queued()
        now = time.monotonic()
        if gone := {sequence for sequence in batch.sequences if sequence.given_up(now)}:
            batch.remove(gone)
            for sequence in gone:
                self._complete([sequence], sequence.overdue())
        try:
            self._admit(batch)
            if batch.sequences:
                batch.step()
        except Exception as error:  # isolation boundary: one step
            # Which sequence is at fault is unknown, and so is the state of all caches: all end, and the engine goes on.
            self._finish(batch.take_over())
            try:
                if not isinstance(error, ToolkitError):
                    log.exception("A step of the engine of %s failed; what was running ends.", self.model)
            finally:
                self._complete(self._left_behind(), error)
            batch.reset()
        self._count(batch)
        self._finish(batch.take_over())
        self._embed(batch)

    def _count(self, batch: Lanes) -> None:
        """Add what the batch computed since the last time to the counters, which outlive it."""
        now = batch.counts
        with self._condition:
            for name, value in now.items():
                held = name.endswith("_bytes")  # now, not so far
                self._counts[name] = value if held else self._counts[name] + value - self._counted.get(name, 0)
            self._counted = now

    def _admit(self, batch: Lanes) -> None:
        with self._condition:
            arrived, self._arrived = self._arrived, deque()
        for sequence in arrived:
            batch.note(sequence)
        taken: list[Sequence] = []
        while (sequence := self._next(lambda sequence: batch.has_room(sequence, taken))) is not None:
            taken.append(sequence)
        if not taken:
            return
        # A reply that the grammar dictates to its end, or that max_tokens cuts within what is dictated, needs no model.
        self._finish([(sequence, outcome) for sequence in taken if (outcome := sequence.outcome()) is not None])
        if decoded := [sequence for sequence in taken if sequence.outcome() is None]:
            batch.insert(decoded)
        with self._condition:
            self._counts["prompt_tokens"] += sum(sequence.prompt_size for sequence in taken)


def _clear_streams() -> None:
    """Destroy this thread's MLX streams: one that outlives its thread aborts the process at exit."""
    import mlx.core as mx

    mx.clear_streams()
    mx.clear_cache()
