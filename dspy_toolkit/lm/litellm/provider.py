"""The engine behind LiteLLM: a custom provider named `mlx`.

Registers engines under their models' names, with what each falls back on, and answers LiteLLM's four ways of calling, and its two of
asking for vectors; `translation` and `fallback` do the rest.

Errors become LiteLLM's exception of the same meaning, with the toolkit's own as their cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import EngineFailed, ModelError, RequestRefused, ToolkitError
from dspy_toolkit.lm.litellm.embeddings import fill_embeddings, take_texts
from dspy_toolkit.lm.litellm.errors import as_litellm
from dspy_toolkit.lm.litellm.fallback import Chain
from dspy_toolkit.lm.litellm.translation import (
    PROVIDER,
    chunk,
    fill,
    last_chunks,
    signed,
    translate,
    turn,
)
from dspy_toolkit.lm.protocol import Message, PendingReply, TextEngine

if TYPE_CHECKING:
    from litellm.types.utils import ModelResponse

    from dspy_toolkit.lm.litellm.translation import Piece

_chains: dict[str, Chain] = {}
_run: ContextVar[Calls | None] = ContextVar("_run", default=None)
"""Whose calls this thread, or this task of an event loop, makes."""


class Calls:
    """The calls of engines that one run has made, to be given up together, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[PendingReply] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether the run was given up."""
        return self._cancelled

    def cancel(self) -> None:
        """Give up: what an engine decodes for this run, now or later, frees its row at the engine's next step."""
        with self._lock:
            self._cancelled = True
            pending, self._pending = self._pending, []
        _cancel(pending)

    def add(self, pending: list[PendingReply]) -> None:
        """Note what was asked for; of a run that was given up it is given up at once."""
        with self._lock:
            if not self._cancelled:
                self._pending = [reply for reply in self._pending if not reply.future.done()] + pending
                return
        _cancel(pending)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Within the block, calls of engines are this run's."""
        token = _run.set(self)
        try:
            yield
        finally:
            _run.reset(token)


def import_litellm() -> Any:
    """LiteLLM, kept from looking at the network when it is imported, and from warnings that nobody here can act on."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Its own typed dictionaries, under pydantic 2.14; some of its modules are imported by the first call only.
    warnings.filterwarnings("ignore", "Items? '.*' on TypedDict class .* using the `ReadOnly` qualifier", UserWarning)
    # It makes the coroutine in a thread, and who is cancelled meanwhile leaves it: nothing was begun.
    warnings.filterwarnings("ignore", r"coroutine '.*MLXProvider\.a\w+' was never awaited", RuntimeWarning)
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False  # pyright: ignore[reportAttributeAccessIssue]
    return litellm


def serve(answering: TextEngine | Chain) -> None:
    """Make an engine, or a chain, answer for its model's name in this process. Serving it again changes nothing."""
    if isinstance(answering, Chain):
        chain = answering
    else:
        chain = Chain(answering.model, [EngineBackend(answering.model, lambda: answering)])
        chain.open()
    litellm = import_litellm()
    if not any(entry["provider"] == PROVIDER for entry in litellm.custom_provider_map):
        # Added to, never replaced: the list may hold somebody else's providers.
        litellm.custom_provider_map = [
            *litellm.custom_provider_map,
            {"provider": PROVIDER, "custom_handler": _make_handler()},
        ]
        litellm.utils.custom_llm_setup()
    if chain.model not in _chains:
        litellm.register_model(
            {
                chain.model: {
                    "litellm_provider": PROVIDER,
                    "mode": "chat",
                    "supports_response_schema": True,
                    "supports_system_messages": True,
                    # Not supports_reasoning: DSPy would then send reasoning_effort, which LiteLLM refuses of providers
                    # that it does not know.
                    "supports_function_calling": any(engine.has_tool_parser for engine in _engines_of(chain)),
                    "input_cost_per_token": 0.0,
                    "output_cost_per_token": 0.0,
                    "cache_creation_input_token_cost": 0.0,
                    "cache_read_input_token_cost": 0.0,
                }
            }
        )
    _chains[chain.model] = chain


def withdraw(model: str) -> None:
    """Stop answering for a model's name."""
    _chains.pop(model, None)


def served() -> dict[str, TextEngine]:
    """The engines of this process by their models' names."""
    return {model: engine for model, chain in list(_chains.items()) for engine in _engines_of(chain)}


def moves() -> dict[tuple[str, str], int]:
    """How often somebody else had to answer, by the names of who could not and of who was asked next."""
    counted: Counter[tuple[str, str]] = Counter()
    for chain in list(_chains.values()):
        counted.update(dict(chain.moves))
    return dict(counted)


def _engines_of(chain: Chain) -> list[TextEngine]:
    """The engine that answers now, if it is one of this process and was made already."""
    backend = chain.current
    return [backend.made] if isinstance(backend, EngineBackend) and backend.made is not None else []


def find_chain(model: str) -> Chain:
    """Who answers for `model`. Raises ModelError when nothing was connected in this process."""
    name = f"{PROVIDER}/{model.removeprefix(PROVIDER + '/')}"
    if name not in _chains:
        raise ModelError(f"No engine of this process runs {name}. Call dspy_toolkit.lm.connect first.")
    return _chains[name]


def find_engine(model: str) -> TextEngine:
    """The engine that answers for `model` now. Raises ModelError when there is none in this process."""
    chain = find_chain(model)
    backend = chain.current
    if not isinstance(backend, EngineBackend):
        raise ModelError(f"No engine of this process runs {chain.model}: {backend.name} answers for it.")
    return backend.engine()


def count_prompt(model: str, messages: list[Any]) -> int:
    """Tokens of a prompt: exact where an engine of this process answers, LiteLLM's estimate elsewhere."""
    if model in _chains and isinstance(backend := _chains[model].current, EngineBackend):
        return backend.engine().count_tokens([Message(**turn(message)) for message in messages])
    return int(import_litellm().token_counter(model=model, messages=messages))


def context_of(model: str) -> int | None:
    """Tokens of prompt and reply together, where an engine of this process answers; None elsewhere."""
    if model in _chains and isinstance(backend := _chains[model].current, EngineBackend):
        return backend.engine().context_size
    return None


class EngineBackend:
    """An engine of this process, made when it is asked first."""

    remote = False

    def __init__(self, name: str, make: Callable[[], TextEngine]) -> None:
        """Args: name: what a response says of who answered; make: gives the engine, or raises ModelError."""
        self.name, self._make = name, make
        self._engine: TextEngine | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it, or its engine, was closed."""
        return self._closed or (self._engine is not None and self._engine.closed)

    @property
    def made(self) -> TextEngine | None:
        """The engine, where it was asked already."""
        return self._engine

    def engine(self) -> TextEngine:
        """The engine. Raises ModelError when it cannot be made."""
        with self._lock:
            if self._closed:
                raise EngineFailed(f"The engine of {self.name} was closed. Connect again.")
            if self._engine is None:
                try:
                    self._engine = self._make()
                except ImportError as error:
                    raise ModelError(f"{self.name} cannot run here: {error}.") from error
            return self._engine

    def open(self) -> None:
        self.engine()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            engine = self._engine
        if engine is not None:
            engine.close()

    def completion(self, call: dict[str, Any]) -> ModelResponse:
        tickets: list[PendingReply] = []
        try:
            tickets = self._submit(call)
            return fill(call["model_response"], self.name, [ticket.result() for ticket in tickets])
        finally:
            _cancel(tickets)

    async def acompletion(self, call: dict[str, Any]) -> ModelResponse:
        tickets: list[PendingReply] = []
        try:
            tickets = await self._submit_async(call)
            replies = [await asyncio.wrap_future(ticket.future) for ticket in tickets]
            return fill(call["model_response"], self.name, replies)
        finally:
            _cancel(tickets)

    def streaming(self, call: dict[str, Any]) -> Generator[Piece]:
        tickets: list[PendingReply] = []
        try:
            tickets = self._submit(call, streaming=True)
            for piece in tickets[0]:
                yield signed(chunk(piece), self.name)
            for piece in last_chunks(tickets[0].result()):
                yield piece
        finally:
            _cancel(tickets)

    async def astreaming(self, call: dict[str, Any]) -> AsyncGenerator[Piece]:
        tickets: list[PendingReply] = []
        try:
            tickets = await self._submit_async(call, streaming=True)
            async for piece in tickets[0]:
                yield signed(chunk(piece), self.name)
            for piece in last_chunks(tickets[0].result()):
                yield piece
        finally:
            _cancel(tickets)

    def _submit(self, call: dict[str, Any], *, streaming: bool = False) -> list[PendingReply]:
        engine = self.engine()
        requests = translate(call["messages"], call.get("optional_params") or {}, call.get("timeout"))
        if streaming and len(requests) > 1:
            raise RequestRefused(f"n is {len(requests)}; with streaming it must be 1.")
        tickets: list[PendingReply] = []
        try:
            for request in requests:
                tickets.append(engine.submit(request))
        except ToolkitError:
            _cancel(tickets)
            raise
        if (run := _run.get()) is not None:
            run.add(tickets)
        return tickets

    async def _submit_async(self, call: dict[str, Any], *, streaming: bool = False) -> list[PendingReply]:
        # Templating and tokenizing take milliseconds, making an engine seconds: not on the event loop.
        submitted = asyncio.ensure_future(asyncio.to_thread(self._submit, call, streaming=streaming))
        try:
            return await asyncio.shield(submitted)
        except asyncio.CancelledError:
            # Its caller went away while the thread was at it: what it submits is for nobody.
            submitted.add_done_callback(
                lambda task: None if task.cancelled() or task.exception() else _cancel(task.result())
            )
            raise


def _make_handler() -> Any:
    from litellm.llms.custom_llm import CustomLLM

    class MLXProvider(CustomLLM):
        """LiteLLM's four ways of calling; each asks the backends of the model in turn."""

        def completion(self, model: str, *args: Any, **call: Any) -> Any:
            with _translated(model):
                for attempt in find_chain(model).attempts():
                    with attempt as backend:
                        return backend.completion(call)
            raise AssertionError("the last attempt returns or raises")

        async def acompletion(self, model: str, *args: Any, **call: Any) -> Any:
            with _translated(model):
                for attempt in find_chain(model).attempts():
                    with attempt as backend:
                        return await backend.acompletion(call)
            raise AssertionError("the last attempt returns or raises")

        def streaming(self, model: str, *args: Any, **call: Any) -> Generator[Piece]:  # pyright: ignore[reportIncompatibleMethodOverride]
            with _translated(model):
                for attempt in find_chain(model).attempts():
                    with attempt as backend, contextlib.closing(backend.streaming(call)) as parts:
                        for part in parts:
                            attempt.begun = True
                            yield part
                        return

        # Vectors of two models cannot be compared: nobody else answers for an engine that cannot.

        def embedding(self, model: str, *args: Any, **call: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            with _translated(model):
                engine = find_engine(model)
                made = engine.embed(
                    *take_texts(call["input"], call.get("optional_params") or {}, call.get("timeout"))
                ).result()
                return fill_embeddings(call["model_response"], engine.model, made)

        async def aembedding(self, model: str, *args: Any, **call: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            with _translated(model):
                asked = take_texts(call["input"], call.get("optional_params") or {}, call.get("timeout"))
                # Tokenizing takes milliseconds, making an engine seconds: not on the event loop.
                pending = await asyncio.to_thread(lambda: find_engine(model).embed(*asked))
                return fill_embeddings(call["model_response"], model, await asyncio.wrap_future(pending))

        async def astreaming(self, model: str, *args: Any, **call: Any) -> AsyncGenerator[Piece]:  # pyright: ignore[reportIncompatibleMethodOverride]
            with _translated(model):
                for attempt in find_chain(model).attempts():
                    with attempt as backend:
                        async with contextlib.aclosing(backend.astreaming(call)) as parts:
                            async for part in parts:
                                attempt.begun = True
                                yield part
                        return

    return MLXProvider()


@contextlib.contextmanager
def _translated(model: str) -> Iterator[None]:
    try:
        yield
    except ToolkitError as error:
        raise as_litellm(error, model, PROVIDER) from error


def _cancel(tickets: list[PendingReply]) -> None:
    """Of a finished ticket this changes nothing; of any other it frees the row."""
    for ticket in tickets:
        ticket.cancel()
