"""A LiteLLM model as a backend: what an MLX model falls back on when `lm.fallbacks` lists it.

It gets the messages and those parameters that any provider may understand; what the engine alone knows (a grammar, top_k,
min_p, a repetition penalty) is left out. LiteLLM's exceptions become the toolkit's of the same meaning.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DeadlineExceeded, EngineBusy, EngineFailed, ModelError, RequestRefused
from dspy_toolkit.lm.litellm.translation import chunk, sign, signed, translate
from dspy_toolkit.lm.remote import check_provider

if TYPE_CHECKING:
    from litellm.types.utils import GenericStreamingChunk, ModelResponse

    from dspy_toolkit.lm.litellm.translation import Piece

PASSED_ON = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "response_format",
    "tools",
    "tool_choice",
    "logprobs",
    "top_logprobs",
)
"""Parameters of OpenAI's interface; LiteLLM leaves out those of them that a provider does not know."""


class LiteLLMBackend:
    """One LiteLLM model."""

    def __init__(self, model: str) -> None:
        """Args: model: LiteLLM's name. Raises ModelNotFound when LiteLLM knows no provider of that name."""
        check_provider(model, "lm.fallbacks")
        self.name = model
        self.closed = False

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        self.closed = True

    def completion(self, call: dict[str, Any]) -> ModelResponse:
        import litellm

        arguments = self._arguments(call)
        with self._errors():
            return sign(litellm.completion(**arguments), self.name)

    async def acompletion(self, call: dict[str, Any]) -> ModelResponse:
        import litellm

        arguments = self._arguments(call)
        with self._errors():
            return sign(await litellm.acompletion(**arguments), self.name)

    def streaming(self, call: dict[str, Any]) -> Generator[Piece]:
        import litellm

        arguments = self._arguments(call)
        with self._errors():
            stream: Any = litellm.completion(**arguments, stream=True, stream_options={"include_usage": True})
            end = _End()
            try:
                for part in stream:
                    yield from end.pieces(part, self.name)
                yield end.piece()
            finally:
                if (close := getattr(stream.completion_stream, "close", None)) is not None:
                    close()

    async def astreaming(self, call: dict[str, Any]) -> AsyncGenerator[Piece]:
        import litellm

        arguments = self._arguments(call)
        with self._errors():
            stream: Any = await litellm.acompletion(**arguments, stream=True, stream_options={"include_usage": True})
            end = _End()
            try:
                async for part in stream:
                    for piece in end.pieces(part, self.name):
                        yield piece
                yield end.piece()
            finally:
                await stream.aclose()

    def _arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        optional = call.get("optional_params") or {}
        # What is refused here is refused everywhere: falling back does not change what a request may say.
        translate(call["messages"], optional, call.get("timeout"))
        given = {name: optional[name] for name in PASSED_ON if optional.get(name) is not None}
        return {
            "model": self.name,
            "messages": call["messages"],
            "timeout": call.get("timeout"),
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
            "cache": {"no-cache": True, "no-store": True},  # DSPy's cache is the one in force
            **given,
        }

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import openai
        from litellm import exceptions

        try:
            try:
                yield
            except exceptions.MidStreamFallbackError as error:  # LiteLLM's wrapping of what fails in a stream
                raise error.original_exception or error from error
        except (exceptions.AuthenticationError, exceptions.NotFoundError, exceptions.PermissionDeniedError) as error:
            raise ModelError(f"{self.name} (lm.fallbacks) cannot be used: {_brief(error)}") from error
        except (exceptions.BadRequestError, exceptions.UnprocessableEntityError) as error:
            raise RequestRefused(f"{self.name} (lm.fallbacks) refuses the request: {_brief(error)}") from error
        except exceptions.RateLimitError as error:
            raise EngineBusy(f"{self.name} (lm.fallbacks) is busy: {_brief(error)}") from error
        except exceptions.Timeout as error:
            raise DeadlineExceeded(f"{self.name} (lm.fallbacks) took too long: {_brief(error)}") from error
        except openai.OpenAIError as error:  # the root of LiteLLM's exceptions
            raise EngineFailed(f"{self.name} (lm.fallbacks) failed: {_brief(error)}") from error


class _End:
    """Keeps the reason and the usage of a stream for its last piece: LiteLLM hands them on in parts of their own."""

    def __init__(self) -> None:
        self._reason, self._usage = "stop", None

    def pieces(self, part: Any, name: str) -> Iterator[GenericStreamingChunk]:
        """What a part of LiteLLM's stream says, as a provider's pieces."""
        if (usage := getattr(part, "usage", None)) is not None:
            self._usage = {key: getattr(usage, key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        for choice in part.choices:
            self._reason = choice.finish_reason or self._reason
            if choice.delta.content:
                yield signed(chunk(choice.delta.content), name)
            for tool_call in getattr(choice.delta, "tool_calls", None) or []:
                yield {**chunk(""), "tool_use": tool_call.model_dump()}

    def piece(self) -> GenericStreamingChunk:
        """The last piece."""
        return chunk("", last=True, reason=self._reason, usage=self._usage)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:300] if lines else type(error).__name__}."
