"""Who is asked: what every system can do, and the engine.

engine         here; through its LiteLLM provider; natively `submit`, with the reply's grammar
generate       `plain`; a LiteLLM custom handler that calls `mlx_lm.generate`, one request after another; natively that function
mlx_lm.server  `servers`; mlx_lm's own server, on loopback; natively its HTTP interface
llama.cpp      `servers`; llama-cpp-python's server on the GGUF, on loopback; natively its HTTP interface, with the JSON schema where
               the answer is JSON, since it takes one

Peers are called through DSPy's `ChatAdapter` without its second attempt as JSON: one call a request for everybody.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import dspy

from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.meter import MeteredLM

Messages = list[dict[str, str]]


class Answer(NamedTuple):
    """A native reply."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Place:
    """What every system needs to know of the model and the machine."""

    home: Path
    model: str
    """As settings name it."""
    folder: Path
    """The weights as peers on MLX load them."""
    gguf: Path | None
    threads: int
    """Of a peer that has to be told."""
    log: Path
    """Where a server's own output goes."""


class System(Protocol):
    """One way of running the model."""

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        """For `dspy.context`; greedy, uncached."""
        ...

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Answer:
        """Natively, greedy. Safe from any thread."""
        ...

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        """The same, in pieces. Closing it gives the rest up."""
        ...

    def drop(self) -> None:
        """Nobody waits any more for what was asked so far; where such requests would be in the way, they go."""
        ...

    def close(self) -> None:
        """Stop, whatever still waits."""
        ...


def missing(name: str) -> str | None:
    """Why a system cannot run here, with the command that helps; None when it can."""
    if name == "llama.cpp" and any(importlib.util.find_spec(each) is None for each in ("llama_cpp", "sse_starlette")):
        return (
            "llama-cpp-python is not installed: `.venv/bin/uv pip install --group peers` "
            "(it compiles C++ for some minutes and needs a compiler and cmake)"
        )
    return None


def start(name: str, place: Place) -> System:
    """Start a system and load its model."""
    if name == "engine":
        from dspy_toolkit.lm import connect
        from dspy_toolkit.settings import load_settings

        settings = load_settings(home=place.home)
        lm = settings.lm.model_copy(update={"model": place.model})
        return EngineSystem(connect(settings.model_copy(update={"lm": lm})))
    if name == "generate":
        from benchmarks.lm.plain import GenerateSystem

        return GenerateSystem(place)
    from benchmarks.lm.servers import llama_server, mlx_server

    return {"mlx_lm.server": mlx_server, "llama.cpp": llama_server}[name](place)


def options(max_tokens: int) -> dict[str, Any]:
    """Of every `dspy.LM`."""
    return {
        "engine": "litellm",
        "cache": False,
        "num_retries": 0,
        "temperature": 0.0,
        "max_tokens": max_tokens,
    }


def peer_adapter() -> dspy.Adapter:
    """Of every peer."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)


class EngineSystem:
    """This project's engine, as `connect` gives it."""

    def __init__(self, connection: Connection) -> None:
        from dspy_toolkit.lm.litellm.provider import find_engine

        self._connection = connection
        self.engine = find_engine(connection.model)

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        return MeteredLM(self._connection.model, **options(max_tokens)), self._connection.adapter

    def _submit(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Any:
        from dspy_toolkit.lm.grammar import signature_grammar
        from dspy_toolkit.lm.protocol import make_request

        grammar = signature_grammar(signature)
        return self.engine.submit(make_request(messages=messages, max_tokens=max_tokens, grammar=grammar))

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Answer:
        reply = self._submit(messages, max_tokens, signature).result()
        return Answer(reply.text, reply.completion_tokens)

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        pending = self._submit(messages, max_tokens, signature)
        try:
            yield from pending
        finally:
            pending.cancel()

    def drop(self) -> None:
        """They take a second or two."""

    def close(self) -> None:
        from dspy_toolkit.lm import close_engines

        close_engines()
