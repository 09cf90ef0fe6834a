"""A fake model for the tests of a project: scripted replies behind the real provider, adapter and cache.

`fake_connection(replies, home)` gives a `Connection`, as `dspy_toolkit.lm.connect` does, whose engine is a
`FakeEngine`:

    connection = fake_connection([{"project": "lora"}, {"project": "clip"}], tmp_path)
    with connection.context():
        program(request="…")

The fake passes the engine's contract tests: queue, deadline, cancelling, streaming, stop strings, lengths, usage,
errors. A reply is checked against the request's grammar byte by byte, so that a script holds only replies that the real
engine could give; `check_grammar=False` allows any reply (one that cannot be parsed).

With `thinking=True` a script may write `<think>…</think>` before its answer, and with `tools=True` calls as
`<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>`: the reply is taken apart as a model's is.

Not covered: decoding several requests at once (replies come one after another), sampling (temperature, top_p, top_k,
min_p, repetition_penalty and seed are ignored; every token has log-probability 0), and the model's own tokenizer: a
token is a word or a sign, with the space before it.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DeadlineExceeded, EngineBusy, EngineFailed, RequestRefused, ToolkitError
from dspy_toolkit.lm.parsing import PLAIN, ReplyFormat, check_abilities, split_reply, visible_text
from dspy_toolkit.lm.protocol import EngineStats, GenerationRequest, Message, PendingReply, Reply, TokenLogprob

if TYPE_CHECKING:
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.settings import Settings

Scripted = str | Mapping[str, Any] | Exception
"""A reply's text; the values of a signature's output fields; or what the engine should fail with."""
Replies = Iterable[Scripted] | Callable[[GenerationRequest], Scripted]

TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


class OutOfAnswers(RequestRefused):
    """A fake was asked for more replies than its test scripted."""


class FakeEngine:
    """The engine's contract over scripted replies."""

    def __init__(
        self,
        replies: Replies,
        *,
        model: str | None = None,
        seconds_per_token: float = 0.0,
        queue_size: int = 1024,
        timeout: float = 600.0,
        context_size: int = 8192,
        check_grammar: bool = True,
        thinking: bool = False,
        tools: bool = False,
    ) -> None:
        """Args:
        replies: given out in the order of the requests (not repeated), or a function of the request.
        model: by default a name that no other fake has, so that DSPy's cache never mixes two.
        seconds_per_token: how long the engine takes for each token of a reply.
        queue_size: requests that may wait for the one that is running.
        context_size: tokens of prompt and reply together.
        thinking: whether it can reason before it answers.
        tools: whether it can call tools.
        """
        self.has_thinking, self.has_tool_parser = thinking, tools
        self.model = model or f"mlx/fake@{uuid.uuid4().hex[:8]}"
        self.requests: list[GenerationRequest] = []
        """Every request that was accepted, in order."""
        self._function = replies if callable(replies) else None
        self._replies = iter(()) if callable(replies) else iter(replies)
        self._given = 0
        self._seconds, self._queue_size, self._timeout = seconds_per_token, queue_size, timeout
        self.context_size, self._check_grammar = context_size, check_grammar
        self._condition = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._active = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._counts: dict[str, int] = dict.fromkeys(EngineStats.model_fields, 0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._stop.is_set()

    def submit(self, request: GenerationRequest) -> PendingReply:
        """Queue a request.

        Raises:
            RequestRefused: the prompt is longer than the context, the grammar cannot be compiled, or the request needs
                tools or thinking that this fake was made without.
            OutOfAnswers: there is no scripted reply left.
            EngineBusy: the queue is full.
            EngineFailed: the engine was closed.
        """
        check_abilities(request, thinking=self.has_thinking, tools=self.has_tool_parser)
        prompt = self.count_tokens(request.messages)
        if prompt + request.max_tokens > self.context_size:
            raise RequestRefused(
                f"The prompt has {prompt} tokens and the reply may have {request.max_tokens}, but the context of "
                f"{self.model} is {self.context_size}."
            )
        matcher = _byte_matcher(request.grammar) if request.grammar else None
        limit = min(request.deadline_seconds or self._timeout, self._timeout)
        with self._condition:
            if self.closed:
                raise EngineFailed(f"The engine of {self.model} was closed. Connect again.")
            if len(self._waiting) >= self._queue_size:
                raise EngineBusy(f"The engine's queue is full: {len(self._waiting)} requests wait. Try again later.")
            scripted = self._next(request)
            job = _Job(request, PendingReply(), prompt, scripted, matcher if self._check_grammar else None, limit)
            self.requests.append(request)
            self._waiting.append(job)
            self._counts["requests"] += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"engine {self.model}", daemon=True)
                self._thread.start()
            self._condition.notify()
        return job.pending_reply

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt: those of each message and three more for its role and marks."""
        return sum(len(TOKEN.findall(message.content)) + 3 for message in messages)

    def stats(self) -> EngineStats:
        """The counters now."""
        with self._condition:
            return EngineStats(**{**self._counts, "queued": len(self._waiting), "active": self._active})

    def close(self) -> None:
        """Stop, failing what still waits. Idempotent."""
        with self._condition:
            self._stop.set()
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self, request: GenerationRequest) -> Scripted:
        if self._function is not None:
            return self._function(request)
        try:
            reply = next(self._replies)
        except StopIteration:
            asked = request.messages[-1].content
            raise OutOfAnswers(
                f"The fake engine was given {self._given} replies and is asked for one more, by a prompt that ends in "
                f"{asked[-80:]!r}. Script another reply."
            ) from None
        self._given += 1
        return reply

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self.closed:
                    self._condition.wait()
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._active = 1
            try:
                result: Reply | Exception = self._generate(job)
            except Exception as error:  # isolation boundary: one request
                result = error
            with self._condition:
                self._active = 0
                self._counts[job.complete(result)] += 1
                self._counts["prompt_tokens"] += job.prompt_tokens
                self._counts["decoded_tokens"] += result.completion_tokens if isinstance(result, Reply) else 0

    def _generate(self, job: _Job) -> Reply:
        started = time.monotonic()
        text = job.text()
        tokens = TOKEN.findall(text)
        reason = "stop" if len(tokens) <= job.request.max_tokens else "length"
        tokens = tokens[: job.request.max_tokens]
        end = len(text := "".join(tokens))
        if cuts := [at for stop in job.request.stop if stop and (at := text.find(stop)) >= 0]:
            end, reason = min(cuts), "stop"
        marks = self._reply_format(job.request)
        grown = sent = used = 0
        for token in tokens:
            if grown >= end:
                break
            if self._stop.wait(self._seconds) if self._seconds else self.closed:
                raise EngineFailed(f"The engine of {self.model} was closed while this request waited. Connect again.")
            job.check_time()
            grown, used = min(grown + len(token), end), used + 1
            seen = visible_text(text[:grown], marks)
            job.pending_reply.push(seen[sent:])
            sent = len(seen)
        job.check_time()
        parts = split_reply(text[:end], marks)
        job.pending_reply.push(parts.text[sent:])
        return Reply(
            text=parts.text,
            reasoning=parts.reasoning,
            tool_calls=parts.tool_calls,
            finish_reason="tool_calls" if parts.tool_calls and reason == "stop" else reason,
            logprobs=_certain(tokens[:used], job.request.logprobs),
            prompt_tokens=job.prompt_tokens,
            completion_tokens=used,
            queue_seconds=started - job.submitted,
            decode_seconds=time.monotonic() - started,
            seconds=time.monotonic() - job.submitted,
        )

    def _reply_format(self, request: GenerationRequest) -> ReplyFormat:
        if request.grammar is not None:
            from dspy_toolkit.lm.grammar import is_tool_call_grammar

            only = is_tool_call_grammar(request.grammar, request.tools)
            return ReplyFormat(calls_only=True, tools=request.tools) if only else PLAIN
        marks: dict[str, Any] = {"think_start": "<think>", "think_end": "</think>"} if self.has_thinking else {}
        if request.tools:
            marks |= {"call_start": "<tool_call>", "call_end": "</tool_call>", "tools": request.tools}
            marks |= {"parse_call": lambda text, tools: json.loads(text)}
        return ReplyFormat(**marks) if marks else PLAIN


def _certain(tokens: Sequence[str], top: int | None) -> tuple[TokenLogprob, ...] | None:
    if top is None:
        return None
    return tuple(TokenLogprob(token=token, logprob=0.0, top=((token, 0.0),)[:top]) for token in tokens)


class _Job:
    def __init__(
        self,
        request: GenerationRequest,
        pending_reply: PendingReply,
        prompt_tokens: int,
        scripted: Scripted,
        matcher: Any | None,
        limit: float,
    ) -> None:
        self.request, self.pending_reply, self.prompt_tokens = request, pending_reply, prompt_tokens
        self.submitted = time.monotonic()
        self._scripted, self._matcher, self._limit = scripted, matcher, limit

    def text(self) -> str:
        if isinstance(self._scripted, Exception):
            raise self._scripted
        text = self._scripted if isinstance(self._scripted, str) else format_reply(self._scripted)
        if self._matcher is not None:
            data = text.encode()
            accepted = self._matcher.try_consume_tokens(list(data))
            if accepted < len(data) or not self._matcher.is_accepting():
                raise RequestRefused(
                    f"The scripted reply does not fit the grammar after {data[:accepted].decode(errors='replace')!r}: "
                    f"{text!r}. Correct it, or give check_grammar=False."
                )
        return text

    def check_time(self) -> None:
        if self.pending_reply.cancelled or time.monotonic() - self.submitted > self._limit:
            raise DeadlineExceeded(f"Not finished within {self._limit:g} s (lm.timeout). Raise it, or send less.")

    def complete(self, result: Reply | Exception) -> str:
        """Give the caller the result, and return the name of the counter to raise."""
        try:
            if isinstance(result, Reply):
                self.pending_reply.future.set_result(result)
                return "finished"
            if not isinstance(result, ToolkitError):
                failure = EngineFailed(f"The engine failed: {type(result).__name__}: {result}.")
                failure.__cause__ = result
                result = failure
            self.pending_reply.future.set_exception(result)
            return "failed"
        except InvalidStateError:  # the caller gave up first
            return "cancelled"


def format_reply(fields: Mapping[str, Any]) -> str:
    """The text of a reply in `ChatAdapter`'s format: `{"project": "lora"}` under its header. Values that are no text
    are written as the grammar writes them: True, 12, and JSON for lists, dictionaries and None.
    """
    parts = []
    for name, value in fields.items():
        if isinstance(value, list | dict | None):
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        parts.append(f"[[ ## {name} ## ]]\n{value}")
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def fake_connection(replies: Replies, home: Path | Settings, **options: Any) -> Connection:
    """A `Connection` to a `FakeEngine`, served in this process until `dspy_toolkit.lm.close_engines`.

    Args:
        replies: see `FakeEngine`.
        home: where the cache of replies goes; a folder, or settings.
        options: of `FakeEngine`.
    """
    from dspy_toolkit.lm.connection import connect, serve_engine
    from dspy_toolkit.settings import Settings

    settings = home if isinstance(home, Settings) else Settings(home=home)
    engine = FakeEngine(replies, **options)
    serve_engine(engine)
    task = settings.lm.model_copy(update={"model": engine.model})
    return connect(settings.model_copy(update={"lm": task}))


def fake_engine(connection: Connection) -> FakeEngine:
    """The fake behind a connection, to look at its `requests` or to close it."""
    from dspy_toolkit.lm.litellm.provider import find_engine

    engine = find_engine(connection.model)
    if not isinstance(engine, FakeEngine):
        raise TypeError(f"{connection.model} is not run by a FakeEngine.")
    return engine


def _byte_matcher(grammar: str) -> Any:
    matcher = _compiled(grammar).deep_copy()
    if matcher.is_error():
        raise RequestRefused(f"The grammar cannot be compiled: {matcher.get_error().splitlines()[0]}.")
    return matcher


@lru_cache(maxsize=64)
def _compiled(grammar: str) -> Any:
    """A matcher at its start. Making one takes longer than everything else that a fake does for a request."""
    import llguidance

    return llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
