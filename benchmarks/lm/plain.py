"""What somebody would write in an afternoon: `mlx_lm.generate`, one request after another, behind a LiteLLM handler."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import dspy

from benchmarks.lm.peers import Answer, Messages, Place, options, peer_adapter
from dspy_toolkit.lm.meter import MeteredLM


class GenerateSystem:
    """`mlx_lm.generate`, one request after another, on one thread: MLX's streams belong to it."""

    name = "plain/model"

    def __init__(self, place: Place) -> None:
        from dspy_toolkit.lm.models.blas import preload

        preload()
        self._over = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._thread.submit(self._load, place.folder).result()
        serve_by("plain", self)

    def _load(self, folder: Path) -> None:
        from mlx_lm import load

        self._model, self._tokenizer = load(str(folder))[:2]

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        return MeteredLM(self.name, **options(max_tokens)), peer_adapter()

    def count(self, messages: Messages) -> int:
        """Tokens of a prompt."""
        return len(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def _generate(self, messages: Messages, max_tokens: int) -> Answer:
        from mlx_lm import generate

        if self._over:
            raise CancelledError
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        text = generate(self._model, self._tokenizer, prompt, max_tokens=max_tokens)
        return Answer(text, len(self._tokenizer.encode(text, add_special_tokens=False)))

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature] | None = None) -> Answer:
        return self._thread.submit(self._generate, messages, max_tokens).result()

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        given_up = threading.Event()

        def generate() -> None:
            from mlx_lm import stream_generate

            prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            try:
                for response in stream_generate(self._model, self._tokenizer, prompt, max_tokens=max_tokens):
                    pieces.put(response.text)
                    if given_up.is_set():
                        break
            finally:
                pieces.put(None)

        done = self._thread.submit(generate)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            done.result()
        finally:
            given_up.set()

    def drop(self) -> None:
        self._over = True
        # Whatever waits in front of this sees the flag.
        self._thread.submit(int).result()
        self._over = False

    def close(self) -> None:
        self._over = True
        self._thread.submit(self._free).result()
        self._thread.shutdown()

    def _free(self) -> None:
        import mlx.core as mx

        del self._model
        mx.clear_streams()


class Asked(Protocol):
    """What a handler needs of a system."""

    name: str

    def ask(self, messages: Messages, max_tokens: int) -> Answer: ...

    def count(self, messages: Messages) -> int: ...


def serve_by(provider: str, system: Asked) -> None:
    """Register a handler of LiteLLM for the system's name, which begins with `provider`."""
    from dspy_toolkit.lm.litellm.provider import import_litellm

    litellm = import_litellm()
    from litellm.llms.custom_llm import CustomLLM
    from litellm.types.utils import Choices, Message, Usage

    class Plain(CustomLLM):
        def completion(self, model: str, *args: Any, **call: Any) -> Any:
            answer = system.ask(call["messages"], call["optional_params"]["max_tokens"])
            response = call["model_response"]
            message = Message(role="assistant", content=answer.text)
            response.choices = [Choices(index=0, finish_reason="stop", message=message)]
            prompt = system.count(call["messages"])
            response.usage = Usage(
                prompt_tokens=prompt, completion_tokens=answer.tokens, total_tokens=prompt + answer.tokens
            )
            return response

    litellm.custom_provider_map = [{"provider": provider, "custom_handler": Plain()}]
    litellm.utils.custom_llm_setup()
    litellm.register_model({system.name: {"litellm_provider": provider, "mode": "chat"}})
