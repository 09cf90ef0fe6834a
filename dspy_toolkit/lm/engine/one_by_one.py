"""Answering one request after another, from one row of logits at a time: what the engines that are simple rather than fast share.

Covered: decoding under a grammar, scores of labels, cancelling and deadlines between two tokens, an exception that ends one
request only, counting. Not covered: what a model has read and how it reads on, which is the engine's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from dspy_toolkit.errors import RequestRefused, ToolkitError
from dspy_toolkit.lm.engine.one_row import Sampler
from dspy_toolkit.lm.engine.sampling import seed_of
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import END, Path, Spelling, log_sum_exp
from dspy_toolkit.lm.engine.thread import EngineThread

log = logging.getLogger(__name__)


class Reader(Protocol):
    """A loaded model, and what it has read."""

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps from one request to the next."""
        ...

    def forget(self) -> None:
        """Start the next request from nothing."""
        ...

    def take_seconds(self) -> float:
        """Seconds inside the model since this was last asked."""
        ...


Read = TypeVar("Read", bound=Reader)


class OneByOne(EngineThread):
    """An engine whose thread answers one request after another."""

    def _answer_all(self, reader: Read, generate: Callable[[Sequence, Read], Outcome]) -> None:
        """Answer what is sent, until the engine is closed.

        Args:
            generate: answers one request; raises what ends it early: deadline, cancelling, closing, its grammar.
        """
        while self._wait_for_work():
            if (sequence := self._next()) is not None:
                self._answer(sequence, reader, generate)

    def _answer(self, sequence: Sequence, reader: Read, generate: Callable[[Sequence, Read], Outcome]) -> None:
        over: list[tuple[Sequence, Outcome]] = []
        failure: Exception | None = None
        try:
            # A reply that the grammar dictates to its end, or that max_tokens cuts within what is dictated, needs no model.
            over.append((sequence, sequence.outcome() or generate(sequence, reader)))
        except Exception as error:  # isolation boundary: one request
            if not isinstance(error, ToolkitError):
                reader.forget()  # its cache may hold half a step
                log.exception("A request to the %s of %s failed.", self.label, self.model)
            failure = error
        with self._condition:
            self._counts["prompt_tokens"] += sequence.prompt_size
            self._counts["prefix_hits"] += sequence.reused > 0
            self._counts["computed_tokens"] += max(len(sequence.prompt) - sequence.reused, 0)
            self._counts["model_seconds"] += reader.take_seconds()
            self._counts["prefix_bytes"] = reader.nbytes
        self._finish(over)
        if failure is not None:
            self._complete([sequence], failure)

    def _decode(self, sequence: Sequence, logits: np.ndarray, feed: Callable[[list[int]], np.ndarray]) -> Outcome:
        """Decode until the sequence is over.

        Args:
            logits: float32 of shape (vocabulary,), after its prompt.
            feed: gives them after some tokens more.
        """
        prompt = sequence.prompt[: sequence.prompt_size]
        sampler = Sampler(sequence.request, self._tokenizer.decode, seed_of(sequence.request.seed, prompt))
        while True:
            self._check(sequence)
            began, size = time.monotonic(), len(sequence.reply)
            context = np.concatenate([prompt, np.asarray(sequence.reply, dtype=np.int64)])
            allowed = _allowed(sequence.matcher, len(logits))
            if (outcome := sequence.take(*sampler.choose(logits, allowed, context, len(prompt)))) is not None:
                return outcome
            sequence.stream()
            logits = feed(sequence.reply[size:])
            with self._condition:
                self._counts["steps"] += 1
                self._counts["batched_rows"] += 1
                self._counts["step_seconds"] += time.monotonic() - began

    def _score(self, sequence: Sequence, spelling: Spelling, logits_after: Callable[[Path], np.ndarray]) -> Outcome:
        """Score labels, a token after another.

        Args:
            logits_after: the prompt and some tokens of a label; asked depth first.
        """
        stops, values = sorted(self._tokenizer.stop_tokens), dict[Path, float]()
        for node in sorted(spelling.following):
            self._check(sequence)
            logits = logits_after(node)
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
    # Some models pad their vocabulary beyond the tokenizer's.
    return np.pad(allowed, (0, size - len(allowed)))
