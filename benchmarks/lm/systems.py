"""The systems that are measured, by name; and the engine as one of them.

engine         here; through its LiteLLM provider; natively `submit`, with the reply's grammar
generate       `plain`; a LiteLLM custom handler that calls `mlx_lm.generate`, one request after another; natively that
function mlx_lm.server  `servers`; mlx_lm's own server, on loopback; natively its HTTP interface llama.cpp
`servers`; llama-cpp-python's server on the GGUF, on loopback; natively its HTTP interface, with the JSON schema where
               the answer is JSON, since it takes one

Peers are called through DSPy's `ChatAdapter` without its second attempt as JSON: one call a request for everybody.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from typing import Any

import dspy

from benchmarks.lm.peers import Answer, Messages, Place, System, options
from benchmarks.lm.plain import GenerateSystem
from benchmarks.lm.servers import llama_server, mlx_server
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.meter import MeteredLM


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
    return {"generate": GenerateSystem, "mlx_lm.server": mlx_server, "llama.cpp": llama_server}[name](place)


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
        """Nothing: the requests under way end within a second or two."""

    def close(self) -> None:
        from dspy_toolkit.lm import close_engines

        close_engines()
