"""One row of the engine's batch: what has been generated of one reply, and when it is over.

A row owns its grammar's matcher and its text; it knows nothing of the batch. It is made on its caller's thread and then runs
on the engine's. It is an isolation boundary: what its grammar or its text raises is kept in `error` and ends this row only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineFailed,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm.exchange import GenerationRequest, Reply, Ticket

Outcome = Literal["stop", "length"]


class Row:
    """A request on its way through the engine."""

    def __init__(
        self,
        request: GenerationRequest,
        ticket: Ticket,
        prompt: Sequence[int],
        matcher: Any | None,
        decode: Callable[[Sequence[int]], str],
        stop_tokens: frozenset[int],
        deadline_seconds: float,
    ) -> None:
        self.request, self.ticket, self.matcher = request, ticket, matcher
        self.prompt_size = len(prompt)
        self.submitted = time.monotonic()
        self.deadline = self.submitted + deadline_seconds
        self.started = self.submitted
        self.reply: list[int] = []
        self.forced = self.reused = 0
        self.error: ToolkitError | None = None
        self._decode, self._stop_tokens = decode, stop_tokens
        self._sent = 0
        # Tokens that the grammar dictates at the start join the prompt: they are read, not decoded.
        self._force()
        self.prompt = np.asarray([*prompt, *self.reply], dtype=np.int64)

    @property
    def room(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_tokens - len(self.reply)

    def given_up(self, now: float) -> bool:
        """Whether nobody waits for it any more at `now` (of `time.monotonic`)."""
        return self.ticket.cancelled or now > self.deadline

    def overdue(self) -> DeadlineExceeded:
        """What to tell a caller whose deadline passed."""
        limit = self.deadline - self.submitted
        return DeadlineExceeded(f"Not finished within {limit:g} s (lm.deadline_seconds). Raise it, or send less.")

    def outcome(self) -> Outcome | None:
        """Why the row is over, or None while it is not. A row with an `error` is over."""
        if self.error is not None or (self.matcher is not None and self.matcher.is_stopped()):
            return "stop"
        return "length" if self.room <= 0 else None

    def _force(self) -> None:
        if self.matcher is None or self.matcher.is_stopped():
            return
        tokens = self.matcher.compute_ff_tokens()[: self.room]
        if tokens:
            self.matcher.consume_tokens(tokens)
            self.reply.extend(tokens)
            self.forced += len(tokens)
        self._check_matcher()

    def _check_matcher(self) -> None:
        if self.error is None and self.matcher is not None and self.matcher.is_error():
            # The first line is the reason; a dump of the parser follows it.
            reason = self.matcher.get_error().splitlines()[0]
            self.error = RequestRefused(f"The grammar could not be followed: {reason}.")

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = EngineFailed(f"This request failed while it was generated: {type(error).__name__}: {error}.")
            self.error.__cause__ = error

    def mask(self, context: Any, logits: Any) -> Any:
        """A logits processor of mlx_lm: take the token just fed, and forbid what the grammar does not allow next.

        Args:
            context: all tokens of the row so far, the one being fed last.
            logits: shape (1, vocabulary).
        """
        try:
            return self._mask(context, logits)
        except Exception as error:  # isolation boundary: one request
            self._fail(error)
            return logits

    def _mask(self, context: Any, logits: Any) -> Any:
        import mlx.core as mx

        if self.error is not None or self.matcher is None:
            return logits
        fed = len(context) - len(self.prompt)
        if fed > 0:
            self.matcher.consume_token(int(context[-1].item()))
            self._check_matcher()
        # The processor runs once more after the last token; there is nothing left to allow then.
        if self.error is not None or self.matcher.is_stopped():
            return logits
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self._check_matcher()
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[-1]].astype(bool)
        if len(allowed) < logits.shape[-1]:  # some models pad their vocabulary beyond the tokenizer's
            allowed = np.pad(allowed, (0, logits.shape[-1] - len(allowed)))
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def take(self, token: int) -> Outcome | None:
        """Add a generated token; say why the row is over, if it is. The matcher has consumed the token already."""
        try:
            return self._take(token)
        except Exception as error:  # isolation boundary: one request
            self._fail(error)
            return "stop"

    def _take(self, token: int) -> Outcome | None:
        if token in self._stop_tokens:
            return "stop"
        self.reply.append(token)
        if self.matcher is not None and self.error is None and not self.matcher.is_stopped():
            # A reply whose rest is dictated to the end needs no more decoding.
            tail = self.matcher.compute_ff_tokens()
            if tail and len(tail) <= self.room:
                ahead = self.matcher.deep_copy()
                ahead.consume_tokens(tail)
                if ahead.is_stopped() and not ahead.is_error():
                    self.matcher = ahead
                    self.reply.extend(tail)
                    self.forced += len(tail)
        if self.request.stop and self._cut_at_stop() is not None:
            return "stop"
        return self.outcome()

    def _cut_at_stop(self) -> str | None:
        text = self._decode(self.reply)
        places = [at for stop in self.request.stop if stop and (at := text.find(stop)) >= 0]
        return text[: min(places)] if places else None

    def text(self) -> str:
        """The reply so far, cut before a stop string."""
        cut = self._cut_at_stop() if self.request.stop else None
        return self._decode(self.reply) if cut is None else cut

    def stream(self) -> None:
        """Hand on what is new, if anybody reads; half a character, or what may be the start of a stop string, waits."""
        if not self.ticket.read:
            return
        text = self.text()
        end = len(text.rstrip("\ufffd"))
        longest = max((len(stop) for stop in self.request.stop), default=0)
        end -= next((n for n in range(min(longest, end), 0, -1) if self._may_stop(text[end - n : end])), 0)
        self._push(text[:end])

    def _push(self, text: str) -> None:
        if len(text) > self._sent:
            self.ticket.push(text[self._sent :])
            self._sent = len(text)

    def _may_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.request.stop)

    def finish(self, outcome: Outcome) -> Reply | ToolkitError:
        """The reply as it stands, its last piece handed on; or what went wrong."""
        try:
            if self.error is None:
                text = self.text()
                self._push(text)
                return Reply(
                    text=text,
                    finish_reason=outcome,
                    prompt_tokens=self.prompt_size,
                    completion_tokens=len(self.reply),
                    reused_tokens=self.reused,
                    forced_tokens=self.forced,
                    queue_seconds=self.started - self.submitted,
                    seconds=time.monotonic() - self.submitted,
                )
        except Exception as error:  # isolation boundary: one request
            self._fail(error)
        return self.error or EngineFailed("This request failed while it was generated.")


def make_sampler(temperature: float, top_p: float, seed: int) -> Callable[[Any], Any]:
    """A sampler of mlx_lm with a random state of its own, so that a row's draws do not depend on its neighbours.

    Args:
        temperature: above 0.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
        seed: the same seed gives the same draws.
    """
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_top_p

    key = mx.random.key(seed)

    def sample(logprobs: Any) -> Any:
        nonlocal key
        key, now = mx.random.split(key)
        scaled = logprobs if top_p >= 1 else apply_top_p(logprobs, top_p)
        return mx.random.categorical(scaled / temperature, key=now)

    return sample
