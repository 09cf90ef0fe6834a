"""DSPy's own engine contract over an engine of this process: `dspy.LM(name, engine=NativeEngine(name), …)`, without LiteLLM.

    lm = dspy.LM(connection.model, engine=NativeEngine(connection.model), async_engine=AsyncNativeEngine(connection.model))

The contract is that of `dspy.clients.engines.base`: one canonical request, one response; a stream is a start, deltas, an end.
A request is translated as LiteLLM's call is (`litellm.translation`), so both doors understand and refuse the same; what the
contract has no field for goes into `Config.extensions`. Reasoning of earlier turns is left out of a prompt, as templates do.

Not covered: this project's own adapter, whose grammars DSPy 3.4 lets no keyword of an LM's call carry to an engine (it refuses
them by name; a `dspy.lm15.Request` carries one in its extensions); what is no text (images, audio, files); probabilities of
judgments; tools that the provider itself runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from dspy_toolkit.errors import DeadlineExceeded, EngineBusy, ModelError, PromptTooLong, RequestRefused, ToolkitError
from dspy_toolkit.lm.litellm.provider import find_engine
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.lm.protocol import GenerationRequest, PendingReply, Reply, TextEngine

TAKEN = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
)
"""Fields of `Config` that LiteLLM's call has by the same names."""
FINISHED = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}


class _Native:
    def __init__(self, engine: TextEngine | str) -> None:
        """Args: engine: one of this process, or the name of a model that is connected, which a saved program keeps."""
        self._engine = engine

    def dump_state(self) -> dict[str, Any]:
        """For `dspy.Module.save`."""
        return {"model": self._engine if isinstance(self._engine, str) else self._engine.model}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Any:
        """What `dump_state` gave; the model must be connected when it is asked first."""
        return cls(state["model"])

    def _submit(self, request: Any) -> tuple[str, PendingReply]:
        engine = find_engine(self._engine) if isinstance(self._engine, str) else self._engine
        return engine.model, engine.submit(translate_native(request))


class NativeEngine(_Native):
    """The synchronous half."""

    def complete(self, request: Any) -> Any:
        """A `dspy.lm15.Request` answered. Raises the lm15 error of what went wrong."""
        try:
            model, pending = self._submit(request)
            return response_of(pending.result(), model)
        except ToolkitError as error:
            raise as_lm15(error) from error

    def stream(self, request: Any) -> Iterator[Any]:
        """The same in pieces; closing it gives the rest up."""
        try:
            model, pending = self._submit(request)
            try:
                yield _start(model)
                for piece in pending:
                    yield _text(piece)
                yield from _last(pending.result())
            finally:
                pending.cancel()
        except ToolkitError as error:
            raise as_lm15(error) from error

    def close(self) -> None:
        """Nothing: the engine is borrowed."""


class AsyncNativeEngine(_Native):
    """The asynchronous half: it holds no thread while it waits."""

    async def complete(self, request: Any) -> Any:
        """As `NativeEngine.complete`; cancelling it frees the engine."""
        try:
            model, pending = await asyncio.to_thread(self._submit, request)
            try:
                return response_of(await asyncio.wrap_future(pending.future), model)
            finally:
                pending.cancel()
        except ToolkitError as error:
            raise as_lm15(error) from error

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """As `NativeEngine.stream`."""
        try:
            model, pending = await asyncio.to_thread(self._submit, request)
            try:
                yield _start(model)
                async for piece in pending:
                    yield _text(piece)
                for event in _last(pending.result()):
                    yield event
            finally:
                pending.cancel()
        except ToolkitError as error:
            raise as_lm15(error) from error

    async def aclose(self) -> None:
        """Nothing: the engine is borrowed."""


def translate_native(request: Any) -> GenerationRequest:
    """A `dspy.lm15.Request` as the engine's. Raises RequestRefused for what it cannot do, by name."""
    config = request.config
    optional = dict(config.extensions or {})
    for name in ("service_tier", "probabilities"):
        if getattr(config, name) is not None:
            optional[name] = getattr(config, name)  # refused by its name, as all that is not understood
    optional |= {name: getattr(config, name) for name in TAKEN}
    if config.stop:
        optional["stop"] = list(config.stop)
    if config.logprobs is not None:
        optional |= {"logprobs": True, "top_logprobs": config.logprobs}
    if (reasoning := config.reasoning) is not None:
        effort = {"reasoning_effort": "none" if reasoning.is_off else reasoning.effort}
        optional |= effort | {"thinking_budget": reasoning.thinking_budget}
    _add_tools(optional, request.tools, config.tool_choice)
    return translate(list(_messages(request)), optional, None)[0]


def _add_tools(optional: dict[str, Any], tools: Any, choice: Any) -> None:
    if beyond := [tool.name for tool in tools if tool.type != "function"]:
        raise RequestRefused(f"The tool {beyond[0]} is one that a provider runs itself. Leave it out.")
    if choice is not None:
        allowed = [tool for tool in tools if not choice.allowed or tool.name in choice.allowed]
        named = choice.mode == "required" and len(choice.allowed) == 1
        optional["tool_choice"] = (
            {"type": "function", "function": {"name": choice.allowed[0]}} if named else choice.mode
        )
        optional["parallel_tool_calls"] = choice.parallel
        tools = allowed
    if tools:
        optional["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters},
            }
            for tool in tools
        ]


def _messages(request: Any) -> Iterator[dict[str, Any]]:
    if request.system is not None:
        yield {"role": "system", "content": _text_of(request.system)}
    for message in request.messages:
        results = [part for part in message.parts if part.type == "tool_result"]
        for part in results:
            content = _text_of(part.content)
            yield {"role": "tool", "content": content, "tool_call_id": part.id, "name": part.name}
        others = [part for part in message.parts if part.type not in ("tool_result", "tool_call", "thinking")]
        calls = [
            {"id": part.id, "function": {"name": part.name, "arguments": json.dumps(part.input, ensure_ascii=False)}}
            for part in message.parts
            if part.type == "tool_call"
        ]
        if others or calls or not results:
            turn: dict[str, Any] = {"role": message.role, "content": _text_of(others)}
            yield turn | ({"tool_calls": calls} if calls else {})


def _text_of(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    for part in parts:
        if part.type not in ("text", "refusal"):
            raise RequestRefused(f"A message has a part of the type {part.type}; this engine reads text only.")
    return "".join(part.text for part in parts)


def response_of(reply: Reply, model: str) -> Any:
    """A reply as a `dspy.lm15.Response`."""
    from dspy import lm15

    parts: list[Any] = [lm15.ThinkingPart(reply.reasoning)] if reply.reasoning else []
    if reply.text or not (parts or reply.tool_calls):
        parts.append(lm15.TextPart(reply.text))
    parts += [lm15.ToolCallPart(call.id, call.name, json.loads(call.arguments)) for call in reply.tool_calls]
    logprobs = None
    if reply.logprobs is not None:
        logprobs = tuple(
            lm15.TokenLogprob(each.token, each.logprob, top=tuple(lm15.TopLogprob(*pair) for pair in each.top))
            for each in reply.logprobs
        )
    finished: Any = FINISHED[reply.finish_reason]
    return lm15.Response(None, model, lm15.Message.assistant(parts), finished, _usage(reply), logprobs=logprobs)


def _usage(reply: Reply) -> Any:
    from dspy import lm15

    return lm15.Usage(
        input_tokens=reply.prompt_tokens, output_tokens=reply.completion_tokens, cache_read_tokens=reply.reused_tokens
    )


def _start(model: str) -> Any:
    from dspy import lm15

    return lm15.StreamStartEvent(model=model)


def _text(piece: str) -> Any:
    from dspy import lm15

    return lm15.StreamDeltaEvent(lm15.TextDelta(piece))


def _last(reply: Reply) -> Iterator[Any]:
    """What is not text comes whole, behind it; then the end."""
    from dspy import lm15

    at = 1
    if reply.reasoning:
        yield lm15.StreamDeltaEvent(lm15.ThinkingDelta(reply.reasoning, part_index=at))
        at += 1
    for index, call in enumerate(reply.tool_calls, at):
        delta = lm15.ToolCallDelta(call.arguments, part_index=index, id=call.id, name=call.name)
        yield lm15.StreamDeltaEvent(delta)
    finished: Any = FINISHED[reply.finish_reason]
    yield lm15.StreamEndEvent(finish_reason=finished, usage=_usage(reply))


def as_lm15(error: ToolkitError) -> Exception:
    """The lm15 error of the same meaning, so that DSPy sorts it rightly into retryable and not."""
    from dspy import lm15

    kinds: list[tuple[Any, Any]] = [
        (PromptTooLong, lm15.ContextLengthError),
        (RequestRefused | ModelError, lm15.InvalidRequestError),
        (EngineBusy, lm15.RateLimitError),
        (DeadlineExceeded, lm15.TimeoutError),
    ]
    kind = next((theirs for ours, theirs in kinds if isinstance(error, ours)), lm15.ServerError)
    return kind(str(error), provider="mlx")
