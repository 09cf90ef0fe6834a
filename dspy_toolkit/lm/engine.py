"""The MLX engine: one model, one thread, many requests decoded together.

Callers on any thread or event loop submit a `GenerationRequest` and get a `Ticket`. The engine's own thread loads the
model, runs every step and frees the model, since MLX's streams belong to a thread. It batches continuously (`batch`); a
beginning that prompts share is computed once (`prefixes`); tokens that a grammar dictates are read, not decoded (`rows`).

What is covered: a bounded queue, a deadline for each request, cancelling at the next step, an exception that ends one
request only, an exception of the whole batch that ends what is running and leaves the engine usable, a thread that dies.
What is not: several models in one thread, quantized caches; deadlines and cancelling take effect between two steps, not
inside one, nor while the model is being loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

from dspy_toolkit.errors import (
    EngineBusy,
    EngineFailed,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm.batch import Batch
from dspy_toolkit.lm.exchange import GenerationRequest, Message, Reply, Snapshot, Ticket
from dspy_toolkit.lm.hardware import Hardware, inspect_hardware
from dspy_toolkit.lm.lease import Lease, acquire
from dspy_toolkit.lm.memory import plan_model
from dspy_toolkit.lm.metrics import observe
from dspy_toolkit.lm.rows import Outcome, Row
from dspy_toolkit.lm.tokenizer import load_tokenizer
from dspy_toolkit.lm.weights import Weights
from dspy_toolkit.settings import LMSettings

log = logging.getLogger(__name__)


class Engine:
    """One model behind one thread. Loading starts with the first request."""

    def __init__(self, weights_: Weights, settings: LMSettings, hardware: Hardware | None = None) -> None:
        """Args: weights_: what to load; settings: batch, queue, deadline, lease and memory limits.

        Raises:
            ModelTooLarge: the weights and one row would not fit.
            ModelError: the tokenizer cannot be read.
        """
        self.model = weights_.name
        self._weights, self._settings = weights_, settings
        self._hardware = hardware or inspect_hardware()
        self._plan = plan_model(weights_, self._hardware, settings)
        self._tokenizer = load_tokenizer(weights_.folder, weights_.sha256)
        self.has_thinking, self.has_tool_parser = self._tokenizer.has_thinking, self._tokenizer.has_tool_parser
        self._condition = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._arrived: deque[Row] = deque()  # of the waiting, those that the batch has not looked at yet
        self._running: set[Row] = set()  # admitted, and not yet told how they ended
        self._thread: threading.Thread | None = None
        self._serving = False  # the thread will look at the queue again
        self._closing = False
        self._counted: dict[str, Any] = {}
        """What the batch of this thread had done when it was counted last."""
        self._counts: dict[str, Any] = dict.fromkeys(Snapshot.model_fields, 0)

    # What callers use, on any thread.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue a request.

        Raises:
            RequestRefused: the prompt is longer than the context, or the grammar cannot be compiled.
            EngineBusy: the queue is full.
            EngineFailed: the engine was closed.
        """
        prompt = self._tokenizer.encode_request(request)
        self._check_length(len(prompt), request.max_tokens)
        matcher = self._tokenizer.matcher(request.grammar) if request.grammar else None
        limit = min(request.deadline_seconds or self._settings.deadline_seconds, self._settings.deadline_seconds)
        marks = self._tokenizer.reply_format(request, prompt)
        row = Row(request, Ticket(), prompt, matcher, self._tokenizer.decode, self._tokenizer.stop_tokens, limit, marks)
        with self._condition:
            if self._closing:
                raise EngineFailed(f"The engine of {self.model} was closed. Connect again.")
            if len(self._waiting) >= self._settings.queue_size:
                raise EngineBusy(
                    f"The engine's queue is full: {len(self._waiting)} requests wait (lm.queue_size). Try again later."
                )
            self._waiting.append(row)
            self._arrived.append(row)
            self._counts["requests"] += 1
            if self._thread is None or not self._serving or not self._thread.is_alive():
                # The one before may still be freeing its model: the new one waits for it before loading its own.
                before, self._serving = self._thread, True
                self._thread = threading.Thread(
                    target=self._run, args=(before,), name=f"engine {self.model}", daemon=True
                )
                self._thread.start()
            self._condition.notify()
        return row.ticket

    def _check_length(self, prompt: int, reply: int) -> None:
        own, room = self._tokenizer.context_size, self._plan.context_size
        if prompt + reply <= min(own, room):
            return
        limit = f"the context of {self.model} is {own}"
        if room < own:
            limit = f"this machine's memory has room for {room} of the {own} tokens of {self.model}'s context"
        raise RequestRefused(
            f"The prompt has {prompt} tokens and the reply may have {reply}, but {limit}. Shorten the prompt (fewer or "
            "shorter demonstrations), or lower lm.max_tokens."
        )

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `messages` make, template included."""
        return len(self._tokenizer.encode_chat(messages))

    def snapshot(self) -> Snapshot:
        """The counters now."""
        with self._condition:
            return Snapshot(**{**self._counts, "queued": len(self._waiting), "active": len(self._running)})

    def close(self) -> None:
        """Stop the thread and free the model. What waits or runs fails with EngineFailed. Idempotent."""
        with self._condition:
            self._closing = True
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # What runs on the engine's thread.

    def _run(self, before: threading.Thread | None) -> None:
        """The thread: an isolation boundary. Whatever ends it reaches every waiting caller; the next request restarts it."""
        held: Lease | None = None
        batch: Batch | None = None
        try:
            if before is not None:
                before.join()
            self._settle(self._left_behind(), EngineFailed("The engine's thread ended. Send the request again."))
            if self._settings.lease == "wait":
                held = acquire(self._hardware.device, self._settings.lease_seconds, stop=self._stop_waiting)
            batch = Batch(self._weights, self._tokenizer, self._plan, self._hardware)
            self._counted = {}
            while self._wait_for_work(batch):
                self._turn(batch)
            self._end(self._closed_early())
        except BaseException as error:
            if self._closing:
                self._end(self._closed_early())
            else:
                try:
                    if not isinstance(error, ToolkitError):
                        log.exception("The engine of %s failed.", self.model)
                finally:  # a log handler that raises must leave no caller waiting
                    self._end(error)
        finally:
            try:
                if batch is not None:
                    batch.free()
                _clear_streams()
            finally:
                if held is not None:
                    held.release()

    def _closed_early(self) -> EngineFailed:
        return EngineFailed(f"The engine of {self.model} was closed while this request waited. Connect again.")

    def _left_behind(self) -> list[Row]:
        with self._condition:
            return list(self._running)

    def _stop_waiting(self) -> bool:
        """While another process holds the accelerator: deadlines still count, and closing does not wait."""
        self._give_up_queued()
        return self._closing

    def _wait_for_work(self, batch: Batch) -> bool:
        with self._condition:
            while not self._closing and not self._waiting and not batch.rows:
                self._condition.wait()
            return not self._closing

    def _turn(self, batch: Batch) -> None:
        """Give up what is overdue, admit what fits, generate one token for each row."""
        self._give_up_queued()
        now = time.monotonic()
        if gone := {row for row in batch.rows if row.given_up(now)}:
            batch.remove(gone)
            for row in gone:
                self._settle([row], row.overdue())
        try:
            self._admit(batch)
            if batch.rows:
                batch.step()
        except Exception as error:  # isolation boundary: one step
            # Nobody can say which row is at fault, and their caches are in an unknown state: all end, the engine goes on.
            self._finish(batch.take_over())
            try:
                if not isinstance(error, ToolkitError):
                    log.exception("A step of the engine of %s failed; what was running ends.", self.model)
            finally:
                self._settle(self._left_behind(), error)
            batch.reset()
        self._count(batch)
        self._finish(batch.take_over())

    def _count(self, batch: Batch) -> None:
        """Add what the batch did since the last time; what it holds is as it is now."""
        now = batch.counts
        with self._condition:
            for name, value in now.items():
                held = name.endswith("_bytes")
                self._counts[name] = value if held else self._counts[name] + value - self._counted.get(name, 0)
            self._counted = now

    def _admit(self, batch: Batch) -> None:
        taken: list[Row] = []
        with self._condition:
            arrived, self._arrived = self._arrived, deque()
        for row in arrived:
            batch.note(row)
        with self._condition:
            now = time.monotonic()
            while self._waiting and batch.has_room(self._waiting[0], taken):
                row = self._waiting.popleft()
                row.started = now
                self._running.add(row)
                taken.append(row)
        if not taken:
            return
        # A reply that its grammar dictates to the end, or that max_tokens cuts inside what is dictated, needs no model.
        self._finish([(row, outcome) for row in taken if (outcome := row.outcome()) is not None])
        if decoded := [row for row in taken if row.outcome() is None]:
            batch.insert(decoded)
        with self._condition:
            self._counts["prompt_tokens"] += sum(row.prompt_size for row in taken)

    def _give_up_queued(self) -> None:
        now = time.monotonic()
        with self._condition:
            # Asked once a row: a caller may cancel between two looks, and the row would be on neither side.
            gone = {row for row in self._waiting if row.given_up(now)}
            if gone:
                self._waiting = deque(row for row in self._waiting if row not in gone)
                self._running |= gone
        for row in gone:
            self._settle([row], row.overdue())

    def _finish(self, over: Iterable[tuple[Row, Outcome]]) -> None:
        for row, outcome in over:
            with self._condition:
                self._counts["reused_tokens"] += row.reused
                self._counts["forced_tokens"] += row.forced
                self._counts["decoded_tokens"] += len(row.reply) - row.forced
            self._settle([row], row.finish(outcome))

    def _settle(self, rows: Iterable[Row], result: Reply | BaseException) -> None:
        """Tell each row's caller how it ended, and count it."""
        for row in rows:
            future = row.ticket.future
            with self._condition:
                try:
                    if isinstance(result, Reply):
                        future.set_result(result)
                        observe(self.model, result)
                    else:
                        future.set_exception(_failure(result))
                    kind = "finished" if isinstance(result, Reply) else "failed"
                except InvalidStateError:
                    # The caller gave up first, or the thread was killed just after this very line.
                    kind = "cancelled" if future.cancelled() else "failed"
                self._running.discard(row)
                self._counts[kind] += 1

    def _end(self, error: BaseException) -> None:
        with self._condition:
            # Under the lock: a request that comes after this starts a new thread, one before it is failed here.
            self._serving = False
            self._running.update(self._waiting)
            self._waiting.clear()
        self._settle(self._left_behind(), error)


def _failure(error: BaseException) -> ToolkitError:
    """A fresh error for one caller: a shared one would gather the tracebacks of all of them."""
    if isinstance(error, ToolkitError):
        failure = type(error)(*error.args)
        failure.__cause__ = error.__cause__
        return failure
    failure = EngineFailed(f"The engine failed: {type(error).__name__}: {error}. The next request starts it again.")
    failure.__cause__ = error
    return failure


def _clear_streams() -> None:
    """Destroy this thread's MLX streams: one that outlives its thread aborts the process at exit."""
    import mlx.core as mx

    mx.clear_streams()
    mx.clear_cache()
