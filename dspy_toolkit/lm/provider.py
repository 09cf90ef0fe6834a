"""The engine behind LiteLLM: a custom provider named `mlx`.

Registers engines under their models' names and answers LiteLLM's four ways of calling; `translation` does the rest.

Errors become LiteLLM's exception of the same meaning, with the toolkit's own as their cause: `root_error` finds it again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ModelError, RequestRefused, ToolkitError
from dspy_toolkit.lm.exchange import Message, TextEngine, Ticket
from dspy_toolkit.lm.translation import (
    PROVIDER,
    as_litellm,
    chunk,
    fill,
    last_chunk,
    translate,
    turn,
)

if TYPE_CHECKING:
    from litellm.types.utils import GenericStreamingChunk

_engines: dict[str, TextEngine] = {}


def import_litellm() -> Any:
    """LiteLLM, kept from looking at the network when it is imported."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False  # pyright: ignore[reportAttributeAccessIssue]
    return litellm


def serve(engine: TextEngine) -> None:
    """Make `engine` answer for its model's name in this process. Serving it again changes nothing."""
    litellm = import_litellm()
    if not any(entry["provider"] == PROVIDER for entry in litellm.custom_provider_map):
        # Added to, never replaced: the list may hold somebody else's providers.
        litellm.custom_provider_map = [
            *litellm.custom_provider_map,
            {"provider": PROVIDER, "custom_handler": _make_handler()},
        ]
        litellm.utils.custom_llm_setup()
    if engine.model not in _engines:
        litellm.register_model(
            {
                engine.model: {
                    "litellm_provider": PROVIDER,
                    "mode": "chat",
                    "supports_response_schema": True,
                    "supports_system_messages": True,
                    "input_cost_per_token": 0.0,
                    "output_cost_per_token": 0.0,
                    "cache_creation_input_token_cost": 0.0,
                    "cache_read_input_token_cost": 0.0,
                }
            }
        )
    _engines[engine.model] = engine


def withdraw(model: str) -> None:
    """Stop answering for a model's name."""
    _engines.pop(model, None)


def find_engine(model: str) -> TextEngine:
    """The engine that answers for `model`. Raises ModelError when none was connected in this process."""
    name = f"{PROVIDER}/{model.removeprefix(PROVIDER + '/')}"
    if name not in _engines:
        raise ModelError(f"No engine of this process runs {name}. Call dspy_toolkit.lm.connect first.")
    return _engines[name]


def count_prompt(model: str, messages: list[Any]) -> int:
    """Tokens of a prompt: exact for an engine of this process, LiteLLM's estimate for any other model."""
    if model in _engines:
        return _engines[model].count_tokens([Message(**turn(message)) for message in messages])
    return int(import_litellm().token_counter(model=model, messages=messages))


def root_error(error: BaseException | None) -> ToolkitError | None:
    """The toolkit's own error behind one that DSPy or LiteLLM raised, or None.

    Both wrap what a provider raises, more than once; Python links each to the one before as `__cause__` or `__context__`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ToolkitError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _submit(model: str, call: dict[str, Any], *, streaming: bool = False) -> list[Ticket]:
    engine = find_engine(model)
    requests = translate(call["messages"], call.get("optional_params") or {}, call.get("timeout"))
    if streaming and len(requests) > 1:
        raise RequestRefused(f"n is {len(requests)}; with streaming it must be 1.")
    tickets: list[Ticket] = []
    try:
        for request in requests:
            tickets.append(engine.submit(request))
    except ToolkitError:
        _cancel(tickets)
        raise
    return tickets


async def _submit_async(model: str, call: dict[str, Any], *, streaming: bool = False) -> list[Ticket]:
    # Templating and tokenizing take milliseconds: not on the event loop.
    submitted = asyncio.ensure_future(asyncio.to_thread(_submit, model, call, streaming=streaming))
    try:
        return await asyncio.shield(submitted)
    except asyncio.CancelledError:
        # Its caller went away while the thread was at it: what it submits is for nobody.
        submitted.add_done_callback(lambda task: _cancel(task.result()) if not task.exception() else None)
        raise


def _make_handler() -> Any:
    from litellm.llms.custom_llm import CustomLLM

    class MLXProvider(CustomLLM):
        """LiteLLM's four ways of calling; each submits, waits, and gives up its rows when its caller goes away."""

        def completion(self, model: str, *args: Any, **call: Any) -> Any:
            tickets: list[Ticket] = []
            try:
                tickets = _submit(model, call)
                return fill(call["model_response"], model, [ticket.result() for ticket in tickets])
            except ToolkitError as error:
                raise as_litellm(error, model) from error
            finally:
                _cancel(tickets)

        async def acompletion(self, model: str, *args: Any, **call: Any) -> Any:
            tickets: list[Ticket] = []
            try:
                tickets = await _submit_async(model, call)
                replies = [await asyncio.wrap_future(ticket.future) for ticket in tickets]
                return fill(call["model_response"], model, replies)
            except ToolkitError as error:
                raise as_litellm(error, model) from error
            finally:
                _cancel(tickets)

        def streaming(self, model: str, *args: Any, **call: Any) -> Iterator[GenericStreamingChunk]:
            tickets: list[Ticket] = []
            try:
                tickets = _submit(model, call, streaming=True)
                for piece in tickets[0]:
                    yield chunk(piece)
                yield last_chunk(tickets[0].result())
            except ToolkitError as error:
                raise as_litellm(error, model) from error
            finally:
                _cancel(tickets)

        async def astreaming(self, model: str, *args: Any, **call: Any) -> AsyncIterator[GenericStreamingChunk]:  # pyright: ignore[reportIncompatibleMethodOverride]
            tickets: list[Ticket] = []
            try:
                tickets = await _submit_async(model, call, streaming=True)
                async for piece in tickets[0]:
                    yield chunk(piece)
                yield last_chunk(tickets[0].result())
            except ToolkitError as error:
                raise as_litellm(error, model) from error
            finally:
                _cancel(tickets)

    return MLXProvider()


def _cancel(tickets: list[Ticket]) -> None:
    """Of a finished ticket this changes nothing; of any other it frees the row."""
    for ticket in tickets:
        ticket.cancel()
