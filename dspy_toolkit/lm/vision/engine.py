"""The vision engine: the MLX engine's contract for models that read images, over mlx-vlm. Simple rather than fast.

Its thread answers one request after another, each from nothing. Text, grammar and stop strings are those of
`lm.engine.sequence`, as in the MLX engine.

Covered, beside what every engine covers (`lm.engine.thread`): images in the user's messages; cancelling and closing at the
next token, or the next 2,048 tokens of a prompt; an exception that ends one request only; scores of labels. Not covered:
decoding several requests together, prefixes that requests share, adapters (LoRA), vectors of texts, deadlines while the model
is loaded or an image is read.
"""

from __future__ import annotations

import weakref
from collections import abc
from concurrent.futures import Future
from typing import Any

import numpy as np

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.engine.one_by_one import OneByOne
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.models.hardware import Hardware, held_bytes, inspect_hardware
from dspy_toolkit.lm.models.process_memory import PROCESS
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.lm.protocol import Embeddings, GenerationRequest
from dspy_toolkit.lm.vision.prompt import VisionTokenizer, images_of
from dspy_toolkit.lm.vision.reading import Reading
from dspy_toolkit.lm.vision.weights import check_vision, load_processor, load_vision_model, plan_vision
from dspy_toolkit.settings import LMSettings


class VisionEngine(OneByOne):
    """One vision model behind one thread. mlx-vlm is imported when it is made, the model loaded with the first request."""

    label = "vision engine"

    def __init__(self, weights_: Weights, settings: LMSettings, hardware: Hardware | None = None) -> None:
        """Args: weights_: what to load; settings: queue, deadline, lease and memory limits; `batch_size` is not used.

        Raises:
            ModelTooLarge: the weights and one sequence do not fit in memory.
            ModelError: mlx-vlm is not installed, the weights have an adapter, or tokenizer or processor cannot be read.
        """
        check_vision(weights_)
        self._weights, self._hardware = weights_, hardware or inspect_hardware()
        self._tokens = VisionTokenizer(weights_.folder, load_processor(weights_))
        self._plan = PROCESS.join(
            lambda seen, taken: plan_vision(weights_, seen, settings, taken), self._hardware, held_bytes
        )
        self._leave = weakref.finalize(self, PROCESS.leave, self._plan)
        super().__init__(weights_.name, self._tokens, settings, self._plan.context_size)

    def embed(self, texts: abc.Sequence[str], deadline_seconds: float | None = None) -> Future[Embeddings]:
        """As of every engine; this one makes no vectors."""
        raise RequestRefused(f"The {self.label} of {self.model} embeds no text. Ask a model of text alone.")

    def close(self) -> None:
        """As every engine's; its memory is the other engines' again."""
        super().close()
        self._leave()

    def _check_adapter(self, request: GenerationRequest) -> GenerationRequest:
        if request.adapter is not None:
            raise RequestRefused(
                f"The {self.label} of {self.model} runs no adapters, and the request names {request.adapter[:8]}. Leave the "
                "adapter out."
            )
        return request

    def _check_length(self, prompt: int, reply: int) -> None:
        self.context_size = PROCESS.in_force(self._plan).context_size  # other models may have come or gone
        super()._check_length(prompt, reply)

    def _serve(self) -> None:
        import mlx.core as mx

        self._take_lease(self._hardware.device)
        freed, wired = PROCESS.limits(self._plan)
        mx.set_cache_limit(freed)
        if wired is not None:
            mx.set_wired_limit(wired)
        # Held by this frame alone, so that the model is gone when the thread gives the memory back.
        reading = Reading(load_vision_model(self._weights))
        self._answer_all(reading, self._generate)

    def _free(self) -> None:
        import mlx.core as mx

        mx.clear_streams()  # one that outlives its thread aborts the process at exit
        mx.clear_cache()

    def _generate(self, sequence: Sequence, reading: Reading) -> Outcome:
        inputs = self._inputs(sequence, reading.image_token)
        try:
            logits = reading.start(inputs, sequence.reply, lambda: self._check(sequence))
            if sequence.spelling is not None:
                return self._score(sequence, sequence.spelling, reading.branch)
            return self._decode(sequence, logits, reading.feed)
        finally:
            reading.forget()

    def _inputs(self, sequence: Sequence, image_token: int | None) -> dict[str, Any]:
        """The model's input; the sequence's prompt has then as many tokens as its images take. Raises PromptTooLong."""
        import mlx.core as mx

        if not images_of(sequence.request.messages):
            ids = mx.array([sequence.prompt[: sequence.prompt_size].tolist()])
            return {"input_ids": ids, "attention_mask": mx.ones_like(ids)}
        inputs = self._tokens.prepare(sequence.request, image_token)
        tokens = inputs["input_ids"][0].tolist()
        sequence.prompt_size = len(tokens)
        sequence.prompt = np.asarray([*tokens, *sequence.reply], dtype=np.int64)
        spelling = sequence.spelling
        self._check_length(len(tokens), sequence.request.max_tokens if spelling is None else spelling.size)
        return inputs
