"""The vision engine: the MLX engine's contract for models that read images, over mlx-vlm. Simple rather than fast.

Its thread answers one request after another, each from nothing. Text, grammar and stop strings are those of
`lm.engine.sequence`, as in the MLX engine.

Covered, beside what every engine covers (`lm.engine.thread`): images in the user's messages; cancelling and closing at the
next token, or the next 2,048 tokens of a prompt; an exception that ends one request only; scores of labels. Not covered:
decoding several requests together, prefixes that requests share, adapters (LoRA), vectors of texts, deadlines while the model
is loaded or an image is read.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import abc
from concurrent.futures import Future
from typing import Any

import numpy as np

from dspy_toolkit.errors import RequestRefused, ToolkitError
from dspy_toolkit.lm.engine.sampling import seed_of
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import END, Path, Spelling, log_sum_exp
from dspy_toolkit.lm.engine.thread import EngineThread
from dspy_toolkit.lm.models.hardware import Hardware, held_bytes, inspect_hardware
from dspy_toolkit.lm.models.process_memory import PROCESS
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.lm.protocol import Embeddings, GenerationRequest
from dspy_toolkit.lm.torch.sampling import Sampler
from dspy_toolkit.lm.vision.prompt import VisionTokenizer, images_of
from dspy_toolkit.lm.vision.reading import Reading
from dspy_toolkit.lm.vision.weights import check_vision, load_processor, load_vision_model, plan_vision
from dspy_toolkit.settings import LMSettings

log = logging.getLogger(__name__)


class VisionEngine(EngineThread):
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
        while self._wait_for_work():
            if (sequence := self._next()) is not None:
                self._answer(sequence, reading)

    def _free(self) -> None:
        import mlx.core as mx

        mx.clear_streams()  # one that outlives its thread aborts the process at exit
        mx.clear_cache()

    def _answer(self, sequence: Sequence, reading: Reading) -> None:
        over: list[tuple[Sequence, Outcome]] = []
        failure: Exception | None = None
        try:
            over.append((sequence, self._generate(sequence, reading)))
        except Exception as error:  # isolation boundary: one request
            if not isinstance(error, ToolkitError):
                log.exception("A request to the vision engine of %s failed.", self.model)
            failure = error
        reading.forget()
        with self._condition:
            self._counts["prompt_tokens"] += sequence.prompt_size
            self._counts["computed_tokens"] += len(sequence.prompt)
            self._counts["model_seconds"] += reading.take_seconds()
        self._finish(over)
        if failure is not None:
            self._complete([sequence], failure)

    def _generate(self, sequence: Sequence, reading: Reading) -> Outcome:
        """Decode until the sequence is over. Raises what ends it early: deadline, cancelling, closing, its grammar."""
        # A reply that the grammar dictates to its end, or that max_tokens cuts within what is dictated, needs no model.
        if (outcome := sequence.outcome()) is not None:
            return outcome
        inputs = self._inputs(sequence, reading.image_token)
        logits = reading.start(inputs, sequence.reply, lambda: self._check(sequence))
        if sequence.spelling is not None:
            return self._score(sequence, sequence.spelling, reading)
        prompt = sequence.prompt[: sequence.prompt_size]
        sampler = Sampler(sequence.request, self._tokens.decode, seed_of(sequence.request.seed, prompt))
        while True:
            self._check(sequence)
            began, size = time.monotonic(), len(sequence.reply)
            context = np.concatenate([prompt, np.asarray(sequence.reply, dtype=np.int64)])
            allowed = _allowed(sequence.matcher, len(logits))
            if (outcome := sequence.take(*sampler.choose(logits, allowed, context, len(prompt)))) is not None:
                return outcome
            sequence.stream()
            logits = reading.feed(sequence.reply[size:])
            with self._condition:
                self._counts["steps"] += 1
                self._counts["batched_rows"] += 1
                self._counts["step_seconds"] += time.monotonic() - began

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

    def _score(self, sequence: Sequence, spelling: Spelling, reading: Reading) -> Outcome:
        """Score labels, a token after another. Raises as `_generate` does."""
        stops, values = sorted(self._tokens.stop_tokens), dict[Path, float]()
        for node in sorted(spelling.following):
            self._check(sequence)
            logits = reading.branch(node)
            if sequence.first_token is None:
                sequence.first_token = time.monotonic()
            logprobs = logits - log_sum_exp(logits)
            for token in spelling.following[node]:
                values[*node, token] = float(log_sum_exp(logprobs[stops if token == END else [token]]))
        return sequence.take_scores(spelling.sums(values))


def _allowed(matcher: Any, size: int) -> np.ndarray | None:
    """What a grammar allows next, bool of shape (size,); None: everything. Raises RequestRefused when it gives up."""
    if matcher is None or matcher.is_stopped():
        return None
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if matcher.is_error():
        raise RequestRefused(f"The grammar could not be followed: {matcher.get_error().splitlines()[0]}.")
    allowed = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
    return np.pad(allowed, (0, size - len(allowed)))  # some vocabularies are padded beyond the tokenizer's
