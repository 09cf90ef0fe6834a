"""The torch engine: the MLX engine's contract over PyTorch, for where MLX cannot be had. Simple rather than fast.

One thread loads the model, answers one request after another, and frees the model. A prompt starts from what it shares with
the one before it. `rows` does the text, the grammar and the stop strings, as it does for the MLX engine.

What is covered: a bounded queue, a deadline for each request, also while it waits, cancelling and closing at the next token
or the next 512 tokens of a prompt, an exception that ends one request only, a thread that dies; the next request starts it
again. What is not: decoding several requests together, adapters (LoRA), deadlines while the model is being loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

import numpy as np

from dspy_toolkit.errors import EngineBusy, EngineFailed, ModelError, RequestRefused, ToolkitError
from dspy_toolkit.lm.exchange import GenerationRequest, Message, Reply, Snapshot, Ticket
from dspy_toolkit.lm.lease import Lease, acquire
from dspy_toolkit.lm.metrics import observe
from dspy_toolkit.lm.rows import Outcome, Row
from dspy_toolkit.lm.tokenizer import load_tokenizer
from dspy_toolkit.lm.torch_sampling import Sampler
from dspy_toolkit.lm.torch_weights import (
    INSTALL,
    calm_threads,
    check_torch_fits,
    choose_device,
    free_memory,
    import_torch,
    load_torch_model,
    torch_installed,
)
from dspy_toolkit.lm.weights import Weights
from dspy_toolkit.settings import LMSettings

log = logging.getLogger(__name__)

PREFILL_CHUNK = 512
"""Prompt tokens computed at once; between two chunks a request can be given up."""


class TorchEngine:
    """One model behind one thread. Torch is imported, and the model loaded, with the first request."""

    def __init__(self, weights_: Weights, settings: LMSettings, device: str | None = None) -> None:
        """Args:
        weights_: what to load.
        settings: queue, deadline, lease and memory limits; `batch_size` is not used.
        device: `cuda`, `mps` or `cpu`; the best there is by default.

        Raises:
            ModelError: torch is not installed, the weights have an adapter, or the tokenizer cannot be read.
        """
        if not torch_installed():
            raise ModelError(f"torch is not installed, so it cannot run {weights_.name}. {INSTALL}")
        if weights_.adapter is not None:
            raise ModelError(
                f"{weights_.name} has an adapter, which mlx_lm alone can read. Fuse it with `mlx_lm.fuse`, or use "
                "lm.backend=mlx."
            )
        calm_threads()
        self.model = weights_.name
        self._weights, self._settings, self._device = weights_, settings, device
        self._tokenizer = load_tokenizer(weights_.folder, weights_.sha256)
        self.has_thinking, self.has_tool_parser = self._tokenizer.has_thinking, self._tokenizer.has_tool_parser
        self._condition = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._running: Row | None = None
        self._thread: threading.Thread | None = None
        self._serving = False  # the thread will look at the queue again
        self._closing = False
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
        context = self._tokenizer.context_size
        if len(prompt) + request.max_tokens > context:
            raise RequestRefused(
                f"The prompt has {len(prompt)} tokens and the reply may have {request.max_tokens}, but the context of "
                f"{self.model} is {context}. Shorten the prompt (fewer or shorter demonstrations), or lower lm.max_tokens."
            )
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
            self._counts["requests"] += 1
            if self._thread is None or not self._serving or not self._thread.is_alive():
                # The one before may still be freeing its model: the new one waits for it before loading its own.
                before, self._serving = self._thread, True
                self._thread = threading.Thread(
                    target=self._run, args=(before,), name=f"torch engine {self.model}", daemon=True
                )
                self._thread.start()
            self._condition.notify()
        return row.ticket

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `messages` make, template included."""
        return len(self._tokenizer.encode_chat(messages))

    def snapshot(self) -> Snapshot:
        """The counters now."""
        with self._condition:
            return Snapshot(**{**self._counts, "queued": len(self._waiting), "active": int(self._running is not None)})

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
        device = self._device
        try:
            if before is not None:
                before.join()
            device = device or choose_device()
            if self._settings.lease == "wait":
                name = "metal" if device == "mps" else device  # one accelerator, whoever computes on it
                held = acquire(name, self._settings.lease_seconds, stop=self._stop_waiting)
            check_torch_fits(self._weights, device, self._settings.memory_limit_gb)
            self._serve(device)
            self._end(self._closed())
        except BaseException as error:
            if not self._closing and not isinstance(error, ToolkitError):
                log.exception("The torch engine of %s failed.", self.model)
            self._end(self._closed() if self._closing else error)
        finally:
            free_memory(device)
            if held is not None:
                held.release()

    def _serve(self, device: str) -> None:
        # A frame of its own, so that the model is gone when the thread gives the memory back.
        text = _Text(load_torch_model(self._weights, device), device)
        while (row := self._next()) is not None:
            self._answer(row, text)

    def _closed(self) -> EngineFailed:
        return EngineFailed(f"The engine of {self.model} was closed while this request waited. Connect again.")

    def _stop_waiting(self) -> bool:
        """While another process holds the accelerator: deadlines still count, and closing does not wait."""
        self._give_up_queued()
        return self._closing

    def _next(self) -> Row | None:
        with self._condition:
            while not self._closing and not self._waiting:
                self._condition.wait()
            if self._closing:
                return None
            self._running = row = self._waiting.popleft()
            row.started = time.monotonic()
            return row

    def _answer(self, row: Row, text: _Text) -> None:
        try:
            result = row.finish(self._generate(row, text))
        except Exception as error:  # isolation boundary: one request
            if not isinstance(error, ToolkitError):
                text.forget()  # what was read of it may be half of a step
                log.exception("A request to the torch engine of %s failed.", self.model)
            result = error
        with self._condition:
            self._counts["prompt_tokens"] += row.prompt_size
            self._counts["reused_tokens"] += row.reused
            self._counts["prefix_hits"] += row.reused > 0
            self._counts["forced_tokens"] += row.forced
            self._counts["decoded_tokens"] += len(row.reply) - row.forced
            self._counts["computed_tokens"] += max(len(row.prompt) - row.reused, 0)
            self._counts["model_seconds"] += text.take_seconds()
            self._counts["prefix_bytes"] = text.nbytes
        self._settle([row], result)

    def _generate(self, row: Row, text: _Text) -> Outcome:
        """Decode until the row is over. Raises what ends it otherwise: deadline, cancelling, closing, its grammar."""
        # A reply that its grammar dictates to the end, or that max_tokens cuts inside what is dictated, needs no model.
        if (outcome := row.outcome()) is not None:
            return outcome
        kept, logits = text.start(row.prompt, lambda: self._check(row))
        row.reused = min(kept, row.prompt_size)
        sampler = Sampler(row.request, self._tokenizer.decode)
        while True:
            self._check(row)
            began, size = time.monotonic(), len(row.reply)
            context = np.concatenate([row.prompt[: row.prompt_size], np.asarray(row.reply, dtype=np.int64)])
            outcome = row.take(*sampler.choose(logits, _allowed(row.matcher, len(logits)), context))
            if outcome is not None:
                return outcome
            row.stream()
            logits = text.read(row.reply[size:])
            with self._condition:
                self._counts["steps"] += 1
                self._counts["widths"] += 1
                self._counts["step_seconds"] += time.monotonic() - began

    def _check(self, row: Row) -> None:
        self._give_up_queued()
        if self._closing:
            raise self._closed()
        if row.given_up(time.monotonic()):
            raise row.overdue()

    def _give_up_queued(self) -> None:
        now = time.monotonic()
        with self._condition:
            # Asked once a row: a caller may cancel between two looks, and the row would be on neither side.
            gone = {row for row in self._waiting if row.given_up(now)}
            if gone:
                self._waiting = deque(row for row in self._waiting if row not in gone)
        for row in gone:
            self._settle([row], row.overdue())

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
                except InvalidStateError:  # the caller gave up first
                    kind = "cancelled"
                if self._running is row:
                    self._running = None
                self._counts[kind] += 1

    def _end(self, error: BaseException) -> None:
        with self._condition:
            # Under the lock: a request that comes after this starts a new thread, one before it is failed here.
            self._serving = False
            left = [*([self._running] if self._running is not None else []), *self._waiting]
            self._waiting.clear()
        self._settle(left, error)


class _Text:
    """The tokens that the model has read, with their attention cache. Kept from one request to the next."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device
        self._tokens: list[int] = []
        self._cache: Any = None
        self._seconds = 0.0

    def start(self, prompt: np.ndarray, check: Callable[[], None]) -> tuple[int, np.ndarray]:
        """(tokens that were there already, logits after the prompt). `check` may raise, between two chunks."""
        kept = self._keep(prompt)
        logits = None
        for at in range(kept, len(prompt), PREFILL_CHUNK):
            check()
            logits = self.read(prompt[at : at + PREFILL_CHUNK].tolist())
        assert logits is not None
        return kept, logits

    def read(self, tokens: list[int]) -> np.ndarray:
        """Logits, float32 of shape (vocabulary,), after `tokens` are read as well."""
        torch = import_torch()
        began = time.monotonic()
        with torch.inference_mode():
            seen = self._model(
                torch.tensor([tokens], device=self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = seen.logits[0, -1].float().cpu().numpy()
        self._cache = seen.past_key_values
        self._tokens += tokens
        self._seconds += time.monotonic() - began
        return logits

    def forget(self) -> None:
        """Start the next request from nothing."""
        self._tokens, self._cache = [], None

    def take_seconds(self) -> float:
        """Seconds inside the model since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def nbytes(self) -> int:
        """Bytes of the attention cache."""
        layers = getattr(self._cache, "layers", ())
        held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(array.nbytes for array in held if array is not None)

    def _keep(self, prompt: np.ndarray) -> int:
        """Cut what was read to what it shares with `prompt`; how many tokens that is. One is always left to read."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        limit = min(len(self._tokens), len(prompt) - 1)
        same = prompt[:limit] == np.asarray(self._tokens[:limit], dtype=prompt.dtype)
        shared = limit if same.all() else int(np.argmin(same))
        layers = getattr(self._cache, "layers", [None])
        # Only a cache that grows with the text can be cut; a sliding window or a recurrent state cannot.
        if shared == 0 or any(type(layer) is not DynamicLayer for layer in layers):
            self.forget()
            return 0
        cache = DynamicCache(config=self._model.config)
        for index, layer in enumerate(layers):
            cache.update(layer.keys[..., :shared, :], layer.values[..., :shared, :], index)
        self._tokens, self._cache = self._tokens[:shared], cache
        return shared


def _allowed(matcher: Any, size: int) -> np.ndarray | None:
    """What a grammar allows next, bool of shape (size,); None: everything. Raises RequestRefused when it gives up."""
    if matcher is None or matcher.is_stopped():
        return None
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if matcher.is_error():
        raise RequestRefused(f"The grammar could not be followed: {matcher.get_error().splitlines()[0]}.")
    allowed = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
    # Some models pad their vocabulary beyond the tokenizer's.
    return np.pad(allowed, (0, size - len(allowed)))


def _failure(error: BaseException) -> ToolkitError:
    """A fresh error for one caller: a shared one would gather the tracebacks of all of them."""
    if isinstance(error, ToolkitError):
        failure = type(error)(*error.args)
        failure.__cause__ = error.__cause__
        return failure
    failure = EngineFailed(
        f"The torch engine failed: {type(error).__name__}: {error}. The next request starts it again."
    )
    failure.__cause__ = error
    return failure
