"""A LiteLLM model as a backend: what an MLX model falls back on when `lm.fallbacks` lists it.

It gets the messages and those parameters that any provider may understand; what the engine alone knows (a grammar, top_k,
min_p, a repetition penalty) is left out. Labels to score are refused: no interface gives the log-probability of a text that
the model did not write. LiteLLM's exceptions become the toolkit's of the same meaning.

LiteLLM's own `fallbacks` are not used: they ask the next model whatever went wrong, a request that is refused included, hand
it the grammar, which it refuses, and end with an exception that has forgotten the first one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import EngineFailed, RequestRefused
from dspy_toolkit.lm.litellm.errors import mask, remote_fault
from dspy_toolkit.lm.litellm.translation import sign, translate
from dspy_toolkit.lm.remote import check_provider

if TYPE_CHECKING:
    from litellm.types.utils import ModelResponse

    from dspy_toolkit.lm.litellm.translation import Piece

WHERE = "lm.fallbacks"
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
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class LiteLLMBackend:
    """One LiteLLM model."""

    remote = True

    def __init__(self, model: str) -> None:
        """Args: model: LiteLLM's name. Raises ModelNotFound when LiteLLM knows no provider of that name."""
        check_provider(model, WHERE)
        self.name, self.closed = model, False

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        self.closed = True

    def completion(self, call: dict[str, Any]) -> ModelResponse:
        import litellm

        with self._errors(call):
            return sign(litellm.completion(**self._arguments(call)), self.name)

    async def acompletion(self, call: dict[str, Any]) -> ModelResponse:
        import litellm

        with self._errors(call):
            return sign(await litellm.acompletion(**self._arguments(call)), self.name)

    def streaming(self, call: dict[str, Any]) -> Generator[Piece]:
        import litellm

        with self._errors(call):
            stream: Any = litellm.completion(**self._arguments(call), **STREAM)
            try:
                for part in stream:
                    yield sign(part, self.name)
            finally:
                if (close := getattr(stream.completion_stream, "close", None)) is not None:
                    close()

    async def astreaming(self, call: dict[str, Any]) -> AsyncGenerator[Piece]:
        import litellm

        with self._errors(call):
            stream: Any = await litellm.acompletion(**self._arguments(call), **STREAM)
            try:
                async for part in stream:
                    yield sign(part, self.name)
            finally:
                await stream.aclose()

    def _arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        optional = call.get("optional_params") or {}
        # What is refused here is refused everywhere: falling back does not change what a request may say.
        (first, *_) = translate(call["messages"], optional, call.get("timeout"))
        if first.adapter is not None:
            raise RequestRefused(
                f"{self.name} stands in for a model of this machine and has no adapter {first.adapter[:8]}. Leave the adapter "
                "out, or let MLX answer (lm.backend=mlx)."
            )
        if first.label_scores is not None:
            raise RequestRefused(
                f"label_scores asks for the scores of labels, which {self.name} ({WHERE}) cannot give; only an engine of this "
                "process can. Leave label_scores out, or see why the engine did not answer."
            )
        return {
            "model": self.name,
            "messages": call["messages"],
            "timeout": call.get("timeout"),
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
            "cache": {"no-cache": True, "no-store": True},  # DSPy's cache is the one in force
            **{name: optional[name] for name in PASSED_ON if optional.get(name) is not None},
        }

    @contextmanager
    def _errors(self, call: dict[str, Any]) -> Iterator[None]:
        import openai
        from litellm import exceptions

        try:
            yield
        except openai.OpenAIError as error:  # the root of LiteLLM's exceptions
            mask(error)
            # LiteLLM wraps once more what fails in a stream.
            inner = error.original_exception if isinstance(error, exceptions.MidStreamFallbackError) else None
            fault = remote_fault(inner or error, self.name, WHERE, {"timeout": call.get("timeout")})
            raise fault or EngineFailed(f"{self.name} ({WHERE}) failed: {error}") from error
