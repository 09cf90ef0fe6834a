"""Chains of engines to fall back on: fakes, and a provider elsewhere that is a function."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import litellm
from litellm.llms.custom_llm import CustomLLM

from dspy_toolkit.lm.connection import _answer
from dspy_toolkit.lm.litellm.fallback import Chain
from dspy_toolkit.lm.litellm.provider import EngineBackend
from dspy_toolkit.lm.litellm_backend import LiteLLMBackend
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.testing import FakeEngine
from tests.lm.asking import HELLO


@contextmanager
def registered(provider: str, handler: CustomLLM) -> Iterator[None]:
    """LiteLLM asks `handler` for models named `provider/…`."""
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [*before, {"provider": provider, "custom_handler": handler}]
    litellm.utils.custom_llm_setup()
    yield
    litellm.custom_provider_map = before


class Elsewhere:
    """A provider that LiteLLM reaches, in this process: what it is asked, and what it answers or raises."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def handler(self) -> CustomLLM:
        outer = self

        class Provider(CustomLLM):
            def completion(self, model: str, **call: Any) -> Any:
                outer.calls.append({"model": model, **call})
                if outer.error is not None:
                    raise outer.error
                response = call["model_response"]
                response.choices[0].message.content = "from elsewhere"
                response.choices[0].finish_reason = "stop"
                response.usage = litellm.Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
                return response

            async def acompletion(self, model: str, **call: Any) -> Any:
                return self.completion(model, **call)

            def streaming(self, model: str, **call: Any) -> Iterator[Any]:
                outer.calls.append({"model": model, **call})
                if outer.error is not None:
                    raise outer.error
                blank = {"is_finished": False, "finish_reason": "", "index": 0, "tool_use": None, "usage": None}
                yield {**blank, "text": "from "}
                yield {**blank, "text": "elsewhere"}
                usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                yield {**blank, "text": "", "is_finished": True, "finish_reason": "stop", "usage": usage}

            async def astreaming(self, model: str, **call: Any) -> Any:
                for piece in self.streaming(model, **call):
                    yield piece

        return Provider()


class Chains:
    """Makes chains and serves them: first an engine that says or raises something, then others."""

    def __call__(self, *says: Any, listed: tuple[str, ...] = ()) -> Chain:
        name = f"fake@{uuid.uuid4().hex[:8]}"
        backends: list[Any] = []
        for kind, said in zip(("mlx", "torch", "third"), says, strict=False):
            engine = said if isinstance(said, FakeEngine) else FakeEngine(_say(said), model=f"mlx/{name}")
            backends.append(EngineBackend(f"{kind}/{name}", lambda engine=engine: engine))
        backends += [LiteLLMBackend(model) for model in listed]
        made = Chain(f"mlx/{name}", backends)
        _answer(made)
        return made


def _say(said: Any) -> Callable[[GenerationRequest], Any]:
    return said if callable(said) and not isinstance(said, Exception) else lambda request: said


def engine_of(chain: Chain, index: int) -> FakeEngine:
    engine = chain.backends[index].engine()  # type: ignore[attr-defined]
    assert isinstance(engine, FakeEngine)
    return engine


def said(response: Any) -> tuple[str, str]:
    return response.choices[0].message.content, response.system_fingerprint


def complete(model: str) -> tuple[str, str]:
    response: Any = litellm.completion(model=model, messages=HELLO)
    assert response.model == response.system_fingerprint
    return said(response)
