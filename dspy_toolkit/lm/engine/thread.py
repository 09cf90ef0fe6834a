"""A model behind one thread: what every engine shares, whatever it computes with.

Callers on any thread or event loop submit a `GenerationRequest` and get a `PendingReply`. The engine's thread starts
with the first request, or with `load`; it loads the model, answers, and frees the model when it ends. An engine says how: `_serve` and
`_free`.

Covered: a bounded queue; a deadline for each request, also while it waits; the thread's end in any way (each waiting
    caller
gets the cause, the next request starts a new thread); closing; counting how every request ended.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import abc, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from functools import lru_cache
from typing import Any

from dspy_toolkit.errors import DeviceLost, EngineBusy, EngineFailed, PromptTooLong, RequestRefused, ToolkitError
from dspy_toolkit.lm.engine.device_errors import explain
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import Spelling, spell
from dspy_toolkit.lm.engine.stats import observe
from dspy_toolkit.lm.models.lease import Lease, acquire
from dspy_toolkit.lm.protocol import (
    Embeddings,
    EngineStats,
    GenerationRequest,
    LabelScores,
    Message,
    PendingReply,
    Reply,
)
from dspy_toolkit.settings import LMSettings

log = logging.getLogger(__name__)

REMEMBERED_LABELS = 256
"""Lists of labels whose tokens are kept."""
IDLE_SECONDS = 60.0
"""Without a request: then other processes may have the accelerator."""


class EngineThread(ABC):
    """One model, one queue, one thread."""

    label: str
    """What it is called in names of threads and in messages."""

    def __init__(self, model: str, tokenizer: Any, settings: LMSettings, room: int | None = None) -> None:
        """Args:
        model: its name.
        tokenizer: a `Tokenizer`, or what stands in for one.
        settings: queue, deadline and lease.
        room: tokens there is memory for.
        """
        self.model, self._tokenizer, self._settings = model, tokenizer, settings
        self.has_thinking, self.has_tool_parser = self._tokenizer.has_thinking, self._tokenizer.has_tool_parser
        self.context_size = self._tokenizer.context_size if room is None else room
        self._spelled = lru_cache(maxsize=REMEMBERED_LABELS)(self._spell)
        self._condition = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._running: set[Sequence] = set()  # admitted, and not yet told how they ended
        self._loads: list[Future[None]] = []  # who waits for the model to be loaded, and for nothing else
        self._thread: threading.Thread | None = None
        self._serving = False  # the thread will look at the queue again
        self._closing = False
        self._lost: DeviceLost | None = None  # why no request can be answered any more
        self._lease: Lease | None = None
        self._device_leased = ""
        self._counts: dict[str, Any] = dict.fromkeys(EngineStats.model_fields, 0)

    # What callers use, on any thread.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def submit(self, request: GenerationRequest) -> PendingReply:
        """Queue a request.

        Raises:
            PromptTooLong: the prompt and the reply are longer than the context.
            RequestRefused: the grammar cannot be compiled, the labels cannot be told apart, or this engine runs no adapters.
            ModelNotFound, ModelError: there is no such adapter, or it was trained on other weights.
            EngineBusy: the queue is full.
            EngineFailed: the engine was closed.
            DeviceLost: an earlier request found that the GPU can be used no more.
        """
        request = self._check_adapter(request)
        prompt = self._tokenizer.encode_request(request)
        spelling = self._spelling(request.label_scores)
        self._check_length(len(prompt), request.max_tokens if spelling is None else spelling.size)
        matcher = self._tokenizer.matcher(request.grammar) if request.grammar else None
        limit = min(request.deadline_seconds or self._settings.timeout, self._settings.timeout)
        marks = self._tokenizer.reply_format(request, prompt)
        sequence = Sequence(
            request,
            PendingReply(),
            prompt,
            matcher,
            self._tokenizer.decode,
            self._tokenizer.stop_tokens,
            limit,
            marks,
            spelling,
        )
        with self._condition:
            self._check_open()
            if len(self._waiting) >= self._settings.queue_size:
                raise EngineBusy(
                    f"The engine's queue is full: {len(self._waiting)} requests wait (lm.queue_size). Try again later."
                )
            self._enqueue(sequence)
            self._counts["requests"] += 1
            self._wake()
        return sequence.pending_reply

    def load(self) -> Future[None]:
        """Load the model now, so that the first request need not wait for it. Done once it is loaded; else holds a ToolkitError.

        Raises:
            EngineFailed: the engine was closed.
            DeviceLost: an earlier request found that the GPU can be used no more.
        """
        loaded: Future[None] = Future()
        with self._condition:
            self._check_open()
            self._loads.append(loaded)
            self._wake()
        return loaded

    def _check_open(self) -> None:
        if self._closing:
            raise EngineFailed(f"The engine of {self.model} was closed. Connect again.")
        if self._lost is not None:
            raise DeviceLost(*self._lost.args)

    def _wake(self) -> None:
        """Let the thread look at what came, and start it where it does not run. Called under the lock."""
        if self._thread is None or not self._serving or not self._thread.is_alive():
            # The one before may still be freeing its model: the new one waits for it before loading its own.
            before, self._serving = self._thread, True
            name = f"{self.label} {self.model}"
            self._thread = threading.Thread(target=self._run, args=(before,), name=name, daemon=True)
            self._thread.start()
        self._condition.notify()

    def embed(self, texts: abc.Sequence[str], deadline_seconds: float | None = None) -> Future[Embeddings]:
        """Queue texts for their vectors; an engine that makes them overrides this.

        Args:
            deadline_seconds: never more than the engine's own limit.

        Raises:
            RequestRefused: this engine makes none, or a text is empty.
            PromptTooLong: a text is longer than the context.
            EngineFailed: the engine was closed.
        """
        raise RequestRefused(f"The {self.label} of {self.model} embeds no text. Set lm.backend=mlx.")

    def _has_more(self) -> bool:
        """Whether there is something to do beside sequences. Called under the lock."""
        return False

    def _check_adapter(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the whole hash of its adapter; an engine that can run adapters overrides this."""
        if request.adapter is not None:
            raise RequestRefused(
                f"The {self.label} of {self.model} runs no adapters, and the request names {request.adapter[:8]}. Set "
                "lm.backend=mlx, or leave the adapter out."
            )
        return request

    def _spelling(self, labels: LabelScores | None) -> Spelling | None:
        # The type checker does not know that a frozen model is hashable.
        return None if labels is None else self._spelled(labels)  # pyright: ignore[reportArgumentType]

    def _spell(self, labels: LabelScores) -> Spelling:
        return spell(labels, self._tokenizer.spans, ends=bool(self._tokenizer.stop_tokens))

    def _check_length(self, prompt: int, reply: int) -> None:
        own, room = self._tokenizer.context_size, self.context_size
        if prompt + reply <= min(own, room):
            return
        limit = f"the context of {self.model} is {own}"
        if room < own:
            limit = f"this machine's memory has room for {room} of the {own} tokens of {self.model}'s context"
        raise PromptTooLong(
            f"The prompt has {prompt} tokens and the reply may have {reply}, but {limit}. Shorten the prompt (fewer or "
            "shorter demonstrations), or lower lm.max_tokens."
        )

    def _enqueue(self, sequence: Sequence) -> None:
        """Called under the lock."""
        self._waiting.append(sequence)

    def count_tokens(self, messages: abc.Sequence[Message]) -> int:
        """Tokens of the prompt that `messages` make, template included."""
        return len(self._tokenizer.encode_chat(messages))

    def stats(self) -> EngineStats:
        """The counters now."""
        with self._condition:
            return EngineStats(**{**self._counts, "queued": len(self._waiting), "active": len(self._running)})

    def close(self) -> None:
        """Stop the thread and free the model. What waits or runs fails with EngineFailed. Idempotent."""
        with self._condition:
            self._closing = True
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # What runs on the engine's thread.

    @abstractmethod
    def _serve(self) -> None:
        """Load the model and answer until the engine is closing. May raise."""

    @abstractmethod
    def _free(self) -> None:
        """Give back the memory of what `_serve` loaded, if it got so far."""

    def _run(self, before: threading.Thread | None) -> None:
        """The thread, an isolation boundary: whatever ends it reaches every caller; the next request restarts it."""
        try:
            if before is not None:
                before.join()
            self._complete(self._left_behind(), EngineFailed("The engine's thread ended. Send the request again."))
            self._serve()
            self._end(self._closed_early())
        except BaseException as error:
            if self._closing:
                self._end(self._closed_early())
            else:
                try:
                    if not isinstance(error, ToolkitError):
                        log.exception("The %s of %s failed.", self.label, self.model)
                finally:  # a log handler that raises must leave no caller waiting
                    self._end(error)
        finally:
            try:
                self._free()
            finally:
                self._release_lease()

    def _take_lease(self, device: str | None = None) -> None:
        """Have the accelerator to this process, where the settings ask for it; without `device`, that of last time."""
        self._device_leased = device or self._device_leased
        if self._lease is not None and not self._lease.in_force():
            self._release_lease()
        if self._lease is None and self._device_leased and self._settings.lease == "wait":
            self._lease = acquire(self._device_leased, self._settings.lease_seconds, stop=self._stop_waiting)

    def _release_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _stop_waiting(self) -> bool:
        """While another process holds the accelerator: deadlines still count, and closing does not wait."""
        self._give_up_queued()
        return self._closing

    def _closed_early(self) -> EngineFailed:
        return EngineFailed(f"The engine of {self.model} was closed while this request waited. Connect again.")

    def _left_behind(self) -> list[Sequence]:
        with self._condition:
            return list(self._running)

    def _wait_for_work(self) -> bool:
        """Sleep while nothing waits and nothing runs; False when the engine is closing.

        After a minute of that other processes may have the accelerator. The model stays loaded, and the lease is taken back
        before anything is computed.
        """
        with self._condition:
            self._tell_loads()
            while not (self._closing or self._waiting or self._running or self._has_more()):
                if not self._condition.wait(IDLE_SECONDS):
                    self._release_lease()
                self._tell_loads()
            if self._closing:
                return False
        self._take_lease()
        return True

    def _tell_loads(self, error: BaseException | None = None) -> None:
        """Tell who waits for the model that it is loaded, or why not. Called under the lock."""
        loads, self._loads = self._loads, []
        for loaded in loads:
            if not loaded.set_running_or_notify_cancel():
                continue
            if error is None:
                loaded.set_result(None)
            else:
                loaded.set_exception(self._failure(error))

    def _next(self, fits: Callable[[Sequence], bool] = lambda sequence: True) -> Sequence | None:
        """Admit the sequence that waits for longest, if there is one and it `fits`."""
        with self._condition:
            if not self._waiting or not fits(self._waiting[0]):
                return None
            sequence = self._waiting.popleft()
            sequence.started = time.monotonic()
            self._running.add(sequence)
            return sequence

    def _give_up_queued(self) -> None:
        now = time.monotonic()
        with self._condition:
            # Asked once a sequence: a caller may cancel between two looks, and the sequence would be on neither side.
            gone = {sequence for sequence in self._waiting if sequence.given_up(now)}
            if gone:
                self._waiting = deque(sequence for sequence in self._waiting if sequence not in gone)
                self._running |= gone
        for sequence in gone:
            self._complete([sequence], sequence.overdue())

    def _check(self, sequence: Sequence) -> None:
        """Raise what ends `sequence` early: its deadline, cancelling, closing. For engines that answer one by one."""
        self._give_up_queued()
        if self._closing:
            raise self._closed_early()
        if sequence.given_up(time.monotonic()):
            raise sequence.overdue()

    def _finish(self, over: Iterable[tuple[Sequence, Outcome]]) -> None:
        for sequence, outcome in over:
            with self._condition:
                self._counts["reused_tokens"] += sequence.reused
                self._counts["forced_tokens"] += sequence.forced
                self._counts["decoded_tokens"] += len(sequence.reply) - sequence.forced
            self._complete([sequence], sequence.finish(outcome))

    def _complete(self, sequences: Iterable[Sequence], result: Reply | BaseException) -> None:
        """Tell each sequence's caller how it ended, and count it."""
        for sequence in sequences:
            future = sequence.pending_reply.future
            failure = None if isinstance(result, Reply) else self._failure(result)
            with self._condition:
                if isinstance(failure, DeviceLost):
                    self._lost = failure
                try:
                    if isinstance(result, Reply):
                        future.set_result(result)
                        observe(self.model, result)
                    else:
                        future.set_exception(failure)
                    kind = "finished" if isinstance(result, Reply) else "failed"
                except InvalidStateError:
                    # The caller gave up first, or the thread was killed just after this very line.
                    kind = "cancelled" if future.cancelled() else "failed"
                self._running.discard(sequence)
                self._counts[kind] += 1

    def _failure(self, error: BaseException) -> ToolkitError:
        """A fresh error for one caller: a shared one would gather the tracebacks of all of them."""
        if isinstance(error, ToolkitError):
            failure = type(error)(*error.args)
            failure.__cause__ = error.__cause__
            return failure
        failure = explain(error, f"{self.label} of {self.model}", self._settings.memory_limit_gb)
        failure.__cause__ = error
        return failure

    def _end(self, error: BaseException) -> None:
        with self._condition:
            # Under the lock: a request that comes after this starts a new thread, one before it is failed here.
            self._serving = False
            self._running.update(self._waiting)
            self._waiting.clear()
            self._tell_loads(error)
        self._complete(self._left_behind(), error)
