"""One request in the engine's batch: what has been generated of its reply, and when it is over.

A sequence owns its grammar's matcher and its text, and knows nothing of the batch. It is made on its caller's thread
and then belongs to the engine's. It is an isolation boundary: what its grammar or its text raises is kept in `error`
and ends this sequence only.

A reply with a budget for its reasoning begins inside it: till the model, or the budget, ends it, the grammar waits and stop
strings are not looked for.

Tokens that the grammar dictates are not decoded. At the start they join the prompt; after a token that was chosen they
are `pending` with it, and the model is fed all of them in one step; at the end they end the sequence at once. Of a
request with labels to score, what all its replies begin with joins the prompt likewise.
"""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineFailed,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm.engine.growing_text import GrowingText
from dspy_toolkit.lm.engine.spelling import Spelling
from dspy_toolkit.lm.parsing import PLAIN, ReplyFormat, answer_start, split_reply, visible_text
from dspy_toolkit.lm.protocol import GenerationRequest, LabelLogprob, PendingReply, Reply, TokenLogprob

Outcome = Literal["stop", "length"]


class Sequence:
    """A request on its way through the engine."""

    def __init__(
        self,
        request: GenerationRequest,
        pending_reply: PendingReply,
        prompt: abc.Sequence[int],
        matcher: Any | None,
        decode: Callable[[abc.Sequence[int]], str],
        stop_tokens: frozenset[int],
        deadline_seconds: float,
        marks: ReplyFormat = PLAIN,
        spelling: Spelling | None = None,
    ) -> None:
        self.request, self.pending_reply, self._matcher = request, pending_reply, matcher
        self.spelling = spelling
        """The labels to score; None where a reply is to be generated."""
        self.prompt_size = len(prompt)
        self.submitted = time.monotonic()
        self.deadline = self.submitted + deadline_seconds
        self.started = self.submitted
        self.first_token: float | None = None
        self.reply: list[int] = []
        self.forced = self.reused = 0
        self.logprobs: list[TokenLogprob] = []
        self.label_logprobs: list[LabelLogprob] | None = None
        self.seed = 0
        """Of its draws; the batch sets it."""
        self.error: ToolkitError | None = None
        self._decode, self._stop_tokens, self._marks = decode, stop_tokens, marks
        self._budget = marks.budget
        """Of the reasoning that the reply is in; None behind it."""
        self._sent = 0
        self._so_far = GrowingText(decode)
        if spelling is None:
            self._force()
        else:
            self.reply += spelling.begin
            self.forced = len(self.reply)
        self.prompt = np.asarray([*prompt, *self.reply], dtype=np.int64)
        self.pending: list[int] = self.prompt[-1:].tolist()
        """Tokens that the model must be fed before the next one can be chosen."""

    @property
    def matcher(self) -> Any | None:
        """The grammar's, if it says what comes next."""
        return None if self._budget is not None else self._matcher

    @property
    def is_watched(self) -> bool:
        """Whether each token decides, on the host, about the next: by a grammar, or the end of the reasoning."""
        return self._budget is not None or self._matcher is not None

    @property
    def room(self) -> int:
        """Tokens that may still be generated, or follow in the longest row that is scored."""
        return self.spelling.depth if self.spelling is not None else self.request.max_tokens - len(self.reply)

    def start_over(self) -> None:
        """Go on from a prompt that has what was said so far: the caches were given up. The next token is the same."""
        self.prompt = np.asarray([*self.prompt[: self.prompt_size].tolist(), *self.reply], dtype=np.int64)
        self.pending = self.prompt[-1:].tolist()

    def given_up(self, now: float) -> bool:
        """Whether its caller cancelled it, or its deadline has passed at `now` (of `time.monotonic`)."""
        return self.pending_reply.cancelled or now > self.deadline

    def overdue(self) -> DeadlineExceeded:
        """What to tell a caller whose deadline passed."""
        limit = self.deadline - self.submitted
        return DeadlineExceeded(f"Not finished within {limit:g} s (lm.timeout). Raise it, or send less.")

    def outcome(self) -> Outcome | None:
        """Why the sequence is over, or None while it is not. A sequence with an `error` is over."""
        if self.error is not None or (self.matcher is not None and self.matcher.is_stopped()):
            return "stop"
        if self.spelling is not None:
            return None if self.label_logprobs is None else "stop"
        return "length" if self.room <= 0 else None

    def _force(self) -> list[int]:
        """Add what the grammar dictates next to the reply, and give it."""
        if self.matcher is None or self.error is not None or self.matcher.is_stopped():
            return []
        tokens = self.matcher.compute_ff_tokens()[: self.room]
        if tokens:
            self.matcher.consume_tokens(tokens)
            self.reply.extend(tokens)
            self.forced += len(tokens)
            if self.request.logprobs is not None:
                self.logprobs += [TokenLogprob(token=self._decode([token]), logprob=0.0) for token in tokens]
        self.check_matcher()
        return tokens

    def check_matcher(self) -> None:
        """Notice that the grammar's matcher failed."""
        if self.error is None and self.matcher is not None and self.matcher.is_error():
            # The first line is the reason; a dump of the parser follows it.
            reason = self.matcher.get_error().splitlines()[0]
            self.error = RequestRefused(f"The grammar could not be followed: {reason}.")

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = EngineFailed(f"This request failed while it was generated: {type(error).__name__}: {error}.")
            self.error.__cause__ = error

    def take(self, token: int, logprob: TokenLogprob | None = None) -> Outcome | None:
        """Add a generated token, and what the grammar dictates after it; say why the sequence is over, if it is."""
        try:
            return self._take(token, logprob)
        except Exception as error:  # isolation boundary: one request
            self._fail(error)
            return "stop"

    def _take(self, token: int, logprob: TokenLogprob | None) -> Outcome | None:
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.check_matcher()
        if self._budget is not None:
            return self._think(token, logprob)
        if self.error is not None or token in self._stop_tokens:
            return "stop"
        self.reply.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.matcher is not None:
            self.matcher.consume_token(token)
            self.check_matcher()
        self.pending = [token, *self._force()]
        if self.request.stop and self._cut_at_stop() is not None:
            return "stop"
        return self.outcome()

    def _think(self, token: int, logprob: TokenLogprob | None) -> Outcome | None:
        """Add a token of the reasoning, and what dictates the answer's beginning where it ends."""
        budget = self._budget
        assert budget is not None
        given_up = token in self._stop_tokens  # the turn is not over before there is an answer
        if not given_up:
            self.reply.append(token)
            if logprob is not None:
                self.logprobs.append(logprob)
        closed = tuple(self.reply[-len(budget.end) :]) == budget.end
        self.pending = [] if given_up else [token]
        if closed or given_up or len(self.reply) >= budget.tokens:
            self._budget = None
            self.pending += self._dictate([*(() if closed else budget.end), *budget.after])
            self.pending += self._force()
        return self.outcome()

    def _dictate(self, tokens: list[int]) -> list[int]:
        """Add tokens that nobody chose to the reply, as far as there is room, and give them."""
        tokens = tokens[: self.room]
        self.reply += tokens
        self.forced += len(tokens)
        if self.request.logprobs is not None:
            self.logprobs += [TokenLogprob(token=self._decode([token]), logprob=0.0) for token in tokens]
        return tokens

    def take_scores(self, logprobs: abc.Sequence[float]) -> Outcome:
        """Take the labels' log-probabilities, in the order asked; the reply is the likeliest one's."""
        spelling = self.spelling
        assert spelling is not None
        self.label_logprobs = [
            LabelLogprob(label=label, logprob=logprob, tokens=len(counted))
            for label, logprob, counted in zip(spelling.asked.labels, logprobs, spelling.counted, strict=True)
        ]
        best = self._best(self.label_logprobs)
        self.reply = list(spelling.whole[best])
        self.forced = max(len(self.reply) - len(spelling.counted[best]), 0)
        return "stop"

    @staticmethod
    def _best(scores: abc.Sequence[LabelLogprob]) -> int:
        return max(range(len(scores)), key=lambda at: scores[at].logprob)

    def _cut_at_stop(self) -> str | None:
        text = self._so_far.of(self.reply)
        if (begin := answer_start(text, self._marks)) is None:
            return None
        places = [at for stop in self.request.stop if stop and (at := text.find(stop, begin)) >= 0]
        return text[: min(places)] if places else None

    def _size(self) -> int:
        """Tokens of the reply, without those that are wholly behind a stop string's beginning."""
        size = len(self.reply)
        if self.request.stop and (cut := self._cut_at_stop()) is not None:
            while size and len(self._decode(self.reply[: size - 1])) >= len(cut):
                size -= 1
        return size

    def text(self) -> str:
        """The reply so far, cut before a stop string."""
        if (asked := self.request.label_scores) is not None:
            # Not decoded from tokens, which may read a little differently.
            if self.label_logprobs is None:
                return ""
            return f"{asked.prefix}{asked.labels[self._best(self.label_logprobs)]}{asked.suffix}"
        cut = self._cut_at_stop() if self.request.stop else None
        return self._so_far.of(self.reply) if cut is None else cut

    def stream(self) -> None:
        """Hand on what is new, if anybody reads it. Half a character waits, as does what may begin a stop string."""
        if not self.pending_reply.read:
            return
        text = visible_text(self.text(), self._marks)
        end = len(text.rstrip("\ufffd"))
        longest = max((len(stop) for stop in self.request.stop), default=0)
        end -= next((n for n in range(min(longest, end), 0, -1) if self._may_stop(text[end - n : end])), 0)
        self._push(text[:end])

    def _push(self, text: str) -> None:
        if len(text) > self._sent:
            self.pending_reply.push(text[self._sent :])
            self._sent = len(text)

    def _may_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.request.stop)

    def finish(self, outcome: Outcome) -> Reply | ToolkitError:
        """The finished reply, its last piece handed on; or what went wrong."""
        try:
            if self.error is None:
                parts = split_reply(self.text(), self._marks)
                self._push(parts.text)
                now, size = time.monotonic(), self._size()
                first = self.first_token or now
                return Reply(
                    text=parts.text,
                    finish_reason="tool_calls" if parts.tool_calls and outcome == "stop" else outcome,
                    reasoning=parts.reasoning,
                    tool_calls=parts.tool_calls,
                    logprobs=tuple(self.logprobs[:size]) if self.request.logprobs is not None else None,
                    label_logprobs=tuple(self.label_logprobs) if self.label_logprobs is not None else None,
                    prompt_tokens=self.prompt_size,
                    completion_tokens=size,
                    reused_tokens=self.reused,
                    forced_tokens=min(self.forced, size),
                    queue_seconds=self.started - self.submitted,
                    prefill_seconds=first - self.started,
                    decode_seconds=now - first,
                    seconds=now - self.submitted,
                )
        except Exception as error:  # isolation boundary: one request
            self._fail(error)
        return self.error or EngineFailed("This request failed while it was generated.")
