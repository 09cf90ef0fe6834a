"""The systems that are measured, by name; and the engine as one of them.

engine         here; through its LiteLLM provider; natively `submit`, with the reply's grammar
expert         `expert`; mlx_lm's BatchGenerator and LRUPromptCache with llguidance; natively with the reply's grammar
engine-…       the ablation: the engine without one part. `engine-grammar`: natively no grammar, through DSPy the ordinary
               ChatAdapter in place of this project's adapter; `engine-prefix`: no prefix is kept or shared;
               `engine-batching`: one request at a time
generate       `plain`; a LiteLLM custom handler that calls `mlx_lm.generate`, one request after another; natively that function
mlx_lm.server  `servers`; mlx_lm's own server, on loopback; natively its HTTP interface
llama.cpp      `servers`; llama-cpp-python's server on the GGUF, on loopback; natively its HTTP interface, with the JSON schema where
               the answer is JSON, since it takes one

Peers are called through DSPy's `ChatAdapter` without its second attempt as JSON: one call a request for everybody.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from typing import Any

import dspy

from benchmarks.lm.expert import ExpertSystem
from benchmarks.lm.peers import Answer, Messages, Place, System, options, peer_adapter
from benchmarks.lm.plain import GenerateSystem
from benchmarks.lm.servers import llama_server, mlx_server
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.meter import MeteredLM

ABLATION = ("engine-grammar", "engine-prefix", "engine-batching")
"""The engine without one part each."""


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
    if name == "engine" or name in ABLATION:
        from dspy_toolkit.lm import connect
        from dspy_toolkit.settings import load_settings

        settings = load_settings(home=place.home)
        changes: dict[str, Any] = {"model": place.model}
        if name == "engine-batching":
            changes["batch_size"] = 1
        if name == "engine-prefix":
            _without_prefixes()
        lm = settings.lm.model_copy(update=changes)
        connection = connect(settings.model_copy(update={"lm": lm}))
        return EngineSystem(connection, grammar=name != "engine-grammar")
    peers = {"expert": ExpertSystem, "generate": GenerateSystem, "mlx_lm.server": mlx_server, "llama.cpp": llama_server}
    return peers[name](place)


def _without_prefixes() -> None:
    """In this process no prompt is long enough for what it shares to be kept."""
    from dspy_toolkit.lm.engine import prefill_queue, prefixes

    prefixes.MINIMUM = prefill_queue.MINIMUM = prefill_queue.KEEP_FROM = 2**31


class EngineSystem:
    """This project's engine, as `connect` gives it."""

    def __init__(self, connection: Connection, *, grammar: bool = True) -> None:
        """Args: grammar: whether replies are held to one, natively and by the adapter."""
        from dspy_toolkit.lm.litellm.provider import find_engine

        self._connection, self._grammar = connection, grammar
        self.engine = find_engine(connection.model)

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        adapter = self._connection.adapter if self._grammar else peer_adapter()
        return MeteredLM(self._connection.model, **options(max_tokens)), adapter

    def _submit(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Any:
        from dspy_toolkit.lm.grammar import signature_grammar
        from dspy_toolkit.lm.protocol import make_request

        grammar = signature_grammar(signature) if self._grammar else None
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
