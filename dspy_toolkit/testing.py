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

A request with `label_scores` is answered by a script that is

- a mapping of its labels to probabilities (0 to 1) or natural log-probabilities (0 or less), all of them one or the
  other; a label that it leaves out is as good as impossible;
- a text, or the values of a signature's output fields: one of the labels, or the whole reply with prefix and suffix. That
  label has all probability but a millionth.

Not covered: decoding several requests at once (replies come one after another), sampling (temperature, top_p, top_k,
min_p, repetition_penalty and seed are ignored; every token has log-probability 0), and the model's own tokenizer: a
token is a word or a sign, with the space before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary
from xml.sax.saxutils import escape

from dspy_toolkit.errors import EngineError, RequestRefused
from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import Spelling
from dspy_toolkit.lm.engine.thread import EngineThread
from dspy_toolkit.lm.parsing import PLAIN, ReplyFormat, check_abilities
from dspy_toolkit.lm.protocol import Embeddings, GenerationRequest, LabelScores, Message, PendingReply, TokenLogprob
from dspy_toolkit.settings import LMSettings, Settings

if TYPE_CHECKING:
    from dspy_toolkit.lm.connection import Connection

Scripted = str | Mapping[str, Any] | Exception
"""A reply's text; the values of a signature's output fields, written in the format that the request asks for; of a request with
`label_scores` also its labels' probabilities or log-probabilities; or what the engine should fail with.
"""
Replies = Iterable[Scripted] | Callable[[GenerationRequest], Scripted]

UNLIKELY = 1e-6
"""The probability that a script which names one label leaves to the others, together."""
IMPOSSIBLE = -9999.0
"""The log-probability of what has no probability; JSON has no infinity, and OpenAI says this."""

TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


class OutOfAnswers(EngineError):
    """A fake was asked for more replies than its test scripted. No fault of the request: an evaluation ends with it."""


class FakeEngine(EngineThread):
    """The engine's contract over scripted replies."""

    label = "engine"

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
        timeout: seconds that a request may take.
        context_size: tokens of prompt and reply together.
        check_grammar: whether a reply must fit the request's grammar.
        thinking: whether it can reason before it answers.
        tools: whether it can call tools.
        """
        self._words = _Words(context_size, thinking=thinking, tools=tools)
        settings = LMSettings(queue_size=queue_size, timeout=timeout, lease="share")
        super().__init__(model or f"mlx/fake@{uuid.uuid4().hex[:8]}", self._words, settings)
        self.requests: list[GenerationRequest] = []
        """Every request that was accepted, in order."""
        self._function = replies if callable(replies) else None
        self._replies = iter(()) if callable(replies) else iter(replies)
        self._given = 0
        self._seconds, self._check_grammar = seconds_per_token, check_grammar
        self._scripted: WeakKeyDictionary[Sequence, Scripted] = WeakKeyDictionary()

    def submit(self, request: GenerationRequest) -> PendingReply:
        """As of every engine. Raises OutOfAnswers besides, when there is no scripted reply left."""
        return super().submit(request)

    def embed(self, texts: abc.Sequence[str], deadline_seconds: float | None = None) -> Future[Embeddings]:
        """Vectors of 256 numbers that count a text's words: texts with more words in common are nearer to each other."""
        if not texts or "" in texts:
            raise RequestRefused("There is no text to embed, or an empty one. Leave it out.")
        vectors = []
        for text in texts:
            vector = [0.0] * 256
            for word in TOKEN.findall(text.lower()):
                vector[hashlib.sha256(word.strip().encode()).digest()[0]] += 1.0
            size = math.hypot(*vector)
            vectors.append(tuple(value / size for value in vector))
        made: Future[Embeddings] = Future()
        tokens = sum(len(TOKEN.findall(text)) for text in texts)
        made.set_result(Embeddings(vectors=tuple(vectors), prompt_tokens=tokens))
        return made

    def _check_adapter(self, request: GenerationRequest) -> GenerationRequest:
        return request  # any: a script may look at it

    def _enqueue(self, sequence: Sequence) -> None:
        self._scripted[sequence] = self._next_reply(sequence.request)
        sequence.pending_reply.read = (
            True  # a script is over before its reader looks, and streams token by token all the same
        )
        super()._enqueue(sequence)
        self.requests.append(sequence.request)

    def _next_reply(self, request: GenerationRequest) -> Scripted:
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

    def _serve(self) -> None:
        while self._wait_for_work():
            if (sequence := self._next()) is None:
                continue
            with self._condition:
                self._counts["prompt_tokens"] += sequence.prompt_size
            try:
                outcome = self._generate(sequence)
            except Exception as error:  # isolation boundary: one request
                self._complete([sequence], error)
            else:
                self._finish([(sequence, outcome)])

    def _free(self) -> None:
        """Nothing was loaded."""

    def _generate(self, sequence: Sequence) -> Outcome:
        sequence.first_token = sequence.started  # no prompt is read: all the time goes into the reply
        if sequence.spelling is not None:
            return self._score(sequence, sequence.spelling)
        tokens, most = TOKEN.findall(self._text_of(sequence)), sequence.request.max_tokens
        for token in tokens[:most]:
            with self._condition:
                self._condition.wait_for(lambda: self._closing, self._seconds)
            self._check(sequence)
            if sequence.take(self._words.number(token), _certain(token, sequence.request.logprobs)) == "stop":
                return "stop"
            sequence.stream()
        self._check(sequence)
        return "stop" if len(tokens) <= most else "length"

    def _score(self, sequence: Sequence, spelling: Spelling) -> Outcome:
        logprobs = _label_logprobs(spelling.asked, self._scripted[sequence])
        with self._condition:
            self._condition.wait_for(lambda: self._closing, self._seconds)
        self._check(sequence)
        return sequence.take_scores(logprobs)

    def _text_of(self, sequence: Sequence) -> str:
        scripted, grammar = self._scripted[sequence], sequence.request.grammar
        if isinstance(scripted, Exception):
            raise scripted
        text = scripted if isinstance(scripted, str) else format_reply(scripted)
        if not grammar or not self._check_grammar:
            return text
        accepted = _accepted(grammar, text)
        if accepted is None:
            return text
        if not isinstance(scripted, str):
            for other in _in_other_formats(scripted):
                if _accepted(grammar, other) is None:
                    return other
        raise RequestRefused(
            f"The scripted reply does not fit the grammar after {accepted!r}: {text!r}. Correct it, or give "
            "check_grammar=False."
        )


def _label_logprobs(asked: LabelScores, scripted: Scripted) -> list[float]:
    """The labels' log-probabilities by a script. Raises RequestRefused where it says nothing of these labels."""
    if isinstance(scripted, Exception):
        raise scripted
    if isinstance(scripted, Mapping) and all(type(value) in (int, float) for value in scripted.values()):
        chances = any(value > 0 for value in scripted.values())  # else they are log-probabilities
        if scripted and scripted.keys() <= {*asked.labels} and not any(value > 1 for value in scripted.values()):
            given = {
                label: (math.log(value) if value > 0 else IMPOSSIBLE) if chances else float(value)
                for label, value in scripted.items()
            }
            return [given.get(label, IMPOSSIBLE) for label in asked.labels]
    else:
        texts = {scripted} if isinstance(scripted, str) else {format_reply(scripted), *_in_other_formats(scripted)}
        for label in asked.labels:
            if texts & {label, f"{asked.prefix}{label}{asked.suffix}"}:
                others = UNLIKELY / max(len(asked.labels) - 1, 1)
                return [math.log(1 - UNLIKELY if each == label else others) for each in asked.labels]
    raise RequestRefused(
        f"The scripted reply {scripted!r} scores none of the labels {list(asked.labels)}. Give one of them, or a mapping of them "
        "to probabilities (0 to 1) or log-probabilities (0 or less)."
    )


def _certain(token: str, top: int | None) -> TokenLogprob | None:
    return None if top is None else TokenLogprob(token=token, logprob=0.0, top=((token, 0.0),)[:top])


class _Words:
    """A tokenizer: a token is a word or a sign, with the space before it."""

    stop_tokens: frozenset[int] = frozenset({-1})
    """There is one, and no reply is made of it."""

    def __init__(self, context_size: int, *, thinking: bool, tools: bool) -> None:
        self.context_size, self.has_thinking, self.has_tool_parser = context_size, thinking, tools
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def encode_request(self, request: GenerationRequest) -> list[int]:
        check_abilities(request, thinking=self.has_thinking, tools=self.has_tool_parser)
        return self.encode_chat(request.messages)

    def encode_chat(self, messages: abc.Sequence[Message]) -> list[int]:
        """As many tokens as the messages have, and three more each for its role and marks; which ones, nobody asks."""
        return [0] * sum(len(TOKEN.findall(message.content)) + 3 for message in messages)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(self.number(found[0]), found.end()) for found in TOKEN.finditer(text)]

    def number(self, token: str) -> int:
        if token not in self._numbers:
            self._numbers[token] = len(self._texts)
            self._texts.append(token)
        return self._numbers[token]

    def decode(self, tokens: abc.Sequence[int]) -> str:
        return "".join(self._texts[token] for token in tokens)

    def matcher(self, grammar: str) -> None:
        """None: the whole reply is checked before its first token. Raises RequestRefused as a `Tokenizer` does."""
        _byte_matcher(grammar)

    def reply_format(self, request: GenerationRequest, prompt: abc.Sequence[int]) -> ReplyFormat:
        if request.label_scores is not None:
            return PLAIN
        if request.grammar is not None:
            from dspy_toolkit.lm.grammar import is_tool_call_grammar

            only = is_tool_call_grammar(request.grammar, request.tools)
            return ReplyFormat(calls_only=True, tools=request.tools) if only else PLAIN
        marks: dict[str, Any] = {"think_start": "<think>", "think_end": "</think>"} if self.has_thinking else {}
        if request.tools:
            marks |= {"call_start": "<tool_call>", "call_end": "</tool_call>", "tools": request.tools}
            marks |= {"parse_call": lambda text, tools: json.loads(text)}
        return ReplyFormat(**marks) if marks else PLAIN


def format_reply(fields: Mapping[str, Any]) -> str:
    """The text of a reply in `ChatAdapter`'s format: `{"project": "lora"}` under its header. Values that are no text
    are written as the grammar writes them: True, 12, and JSON for lists, dictionaries and None.
    """
    parts = [f"[[ ## {name} ## ]]\n{_written(value)}" for name, value in fields.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _in_other_formats(fields: Mapping[str, Any]) -> Iterator[str]:
    """The same reply in the formats of `dspy_toolkit.lm.formats`."""
    said = {name: _written(value) for name, value in fields.items()}
    if len(said) == 1:
        yield next(iter(said.values()))
    yield "\n".join(f"{name}: {value}" for name, value in said.items())
    yield json.dumps(dict(fields), ensure_ascii=False, separators=(",", ":"))
    yield "\n\n".join(f"<{name}>\n{escape(value)}\n</{name}>" for name, value in said.items())


def _written(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if isinstance(value, list | dict | None)
        else str(value)
    )


def _accepted(grammar: str, text: str) -> str | None:
    """None where `text` is a whole reply under the grammar; else how much of it is the beginning of one."""
    data, matcher = text.encode(), _byte_matcher(grammar)
    accepted = matcher.try_consume_tokens(list(data))
    whole = accepted == len(data) and matcher.is_accepting()
    return None if whole else data[:accepted].decode(errors="replace")


def fake_connection(replies: Replies, home: Path | Settings, **options: Any) -> Connection:
    """A `Connection` to a `FakeEngine`, served in this process until `dspy_toolkit.lm.close_engines`.

    Args:
        replies: see `FakeEngine`.
        home: where the cache of replies goes; a folder, or settings.
        options: of `FakeEngine`.
    """
    from dspy_toolkit.lm.connection import connect, serve_engine

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
