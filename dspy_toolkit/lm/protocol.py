"""What callers and engines exchange: a request, a reply, and the pending reply in between.

Tokens, grammars, deadlines; nothing of DSPy or LiteLLM. The engines and the fake in `dspy_toolkit.testing` all use it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError, field_validator, model_validator

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.store import Frozen

Role = Literal["system", "user", "assistant", "tool", "developer"]


class ToolCall(Frozen):
    """A function that the model wants called."""

    id: str
    name: str
    arguments: str
    """JSON text of an object."""


class Image(Frozen):
    """A picture in a message, in a format that `vision.images` reads."""

    at: int = Field(ge=0)
    """Characters of the message's content that stand before it."""
    data: str
    """The bytes of its file, in base64."""


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    content: str
    """May be empty beside `tool_calls`."""
    images: tuple[Image, ...] = ()
    """Of the user, in the order of their places; for engines that read them."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of the assistant: what it asked for in this turn."""
    tool_call_id: str | None = None
    """Of a `tool` turn: the call that its content answers."""
    name: str | None = None
    """Of a `tool` turn: the function that was called; left out, it is the name in the call."""


class LabelScores(Frozen):
    """Texts to choose from, all of which are scored in place of decoding one.

    The reply is taken to be `prefix`, one of `labels`, `suffix`, in the tokens of that whole text. A label's score is the
    natural logarithm of the probability of its tokens, and of what ends it where that matters, after the prompt and the prefix.
    Counted are:

    - from the first token that is not wholly in the prefix, or that the labels do not all begin with alike;
    - to the label's last token, where no label begins with another and each ends where a token does: what follows tells none of
      them apart, and a grammar would dictate it;
    - else to the first token that goes beyond the label's end into the suffix. Where another label could still go on from there
      (`billing`, before a suffix ` by`, and `billing by post`), as many tokens more as tell them apart, of all labels the same
      number;
    - where the suffix has no token left, the end of the turn: any of the model's stop tokens.

    So the events are exclusive, and the probabilities of all labels together are at most 1. They are the model's own,
    before temperature, filters and penalties.
    """

    prefix: str = ""
    labels: tuple[str, ...] = Field(min_length=1)
    """All different, none empty."""
    suffix: str = ""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if "" in labels:
            raise ValueError("a label is empty")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"a label comes twice: {twice[0]!r}")
        return labels


class GenerationRequest(Frozen):
    """What one reply is to be generated from, and how."""

    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0, le=5)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest likeliest tokens that hold this much probability together."""
    top_k: int = Field(0, ge=0)
    """Draw from this many likeliest tokens; 0: from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Draw from tokens at least this probable, relative to the likeliest."""
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    """Divides the positive logits, and multiplies the negative ones, of tokens in the prompt or reply (Keskar et al.
    2019)."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken from the logits of tokens that the reply has already, as OpenAI defines it; the prompt does not count."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken from them as often as the reply has them."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit), from -100 to 100; a grammar forbids what it forbids."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Give each token's log-probability and this many of the likeliest; None: give none."""
    seed: int | None = None
    """With a temperature: the same seed and prompt draw the same tokens from the same probabilities; another prompt draws
    with other noise. Probabilities may differ in their last digits with the size of the batch, on a GPU above all, and near
    a tie so may the reply: a seed makes runs alike, and promises no reply."""
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these; in reasoning they are not looked for."""
    grammar: str | None = None
    """A grammar in llguidance's Lark dialect that the whole reply must match."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the reply may call, in OpenAI's notation; refused by a model without a tool parser."""
    thinking: bool | None = None
    """Whether a model that can reason first does so; None: whatever its template says."""
    thinking_budget: int | None = Field(None, ge=1)
    """Tokens of reasoning at most, of `max_tokens`; what ends it is then dictated. Only so can a grammar follow it."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """How much a model reasons whose template has words for it (gpt-oss); to any other it says nothing."""
    adapter: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")
    """Hash of an adapter in `home/adapters`, or its first eight hex digits or more; None: the model as it is."""
    label_scores: LabelScores | None = None
    """Score these instead of generating: nothing is drawn or decoded, `max_tokens` does not matter, and the reply is the
    likeliest of them."""
    deadline_seconds: float | None = Field(None, gt=0)
    """From submission to the last token; never more than the engine's own limit."""

    @field_validator("logit_bias")
    @classmethod
    def _bounded(cls, bias: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        for token, value in bias:
            if token < 0 or not -100 <= value <= 100:
                raise ValueError(f"{token}: {value:g} is not a token and a number from -100 to 100")
        return bias

    @model_validator(mode="after")
    def _thinks_within_its_length(self) -> GenerationRequest:
        if self.thinking_budget is not None and self.thinking is False:
            raise ValueError(
                f"It gives thinking_budget {self.thinking_budget}, and thinking is False. Leave one of both out."
            )
        if self.thinking_budget is not None and self.thinking_budget >= self.max_tokens:
            raise ValueError(
                f"Its thinking_budget is {self.thinking_budget} of max_tokens {self.max_tokens}, which leaves nothing for the "
                "answer. Raise max_tokens."
            )
        return self

    @model_validator(mode="after")
    def _scores_alone(self) -> GenerationRequest:
        if self.label_scores is None:
            return self
        beside = {
            "grammar": self.grammar is not None,
            "tools": bool(self.tools),
            "stop": bool(self.stop),
            "logprobs": self.logprobs is not None,
            "temperature": self.temperature > 0,
            "repetition_penalty": self.repetition_penalty != 1,
            "presence_penalty": self.presence_penalty != 0,
            "frequency_penalty": self.frequency_penalty != 0,
            "logit_bias": bool(self.logit_bias),
            "thinking": bool(self.thinking),
            "thinking_budget": self.thinking_budget is not None,
        }
        if named := [name for name, given in beside.items() if given]:
            raise ValueError(
                f"It gives label_scores, for which nothing is generated, and beside them {', '.join(named)}. Leave one of "
                "both out."
            )
        return self


def make_request(**fields: Any) -> GenerationRequest:
    """A checked request. Raises RequestRefused, naming the field and the value seen."""
    try:
        return GenerationRequest(**fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in p['loc'])}: {p['msg'].removeprefix('Value error, ')} (it is {str(p['input'])[:80]!r})"
            if p["loc"]
            else str(p.get("ctx", {}).get("error"))  # of the request as a whole
            for p in error.errors(include_url=False)
        )
        raise RequestRefused(f"The request cannot be run. {problems}") from None


class TokenLogprob(Frozen):
    """A token of a reply with its natural log-probability, before temperature and after the grammar."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens at this place with theirs, best first."""


class LabelLogprob(Frozen):
    """The score of one label."""

    label: str
    logprob: float
    """Natural logarithm, at most 0; of what is counted, see `LabelScores`."""
    tokens: int
    """Tokens that are counted, at least 1: `logprob / tokens` is normalised by length."""


class Reply(Frozen):
    """A finished reply."""

    text: str
    """Without reasoning and tool calls."""
    finish_reason: Literal["stop", "length", "tool_calls"]
    """`length`: cut by max_tokens."""
    reasoning: str | None = None
    """What a thinking model wrote before its answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One a token of the reply; a token that the grammar forced has log-probability 0. None where not asked for."""
    label_logprobs: tuple[LabelLogprob, ...] | None = None
    """Of a request with `label_scores`: one a label, in the order asked. `text` is then prefix, likeliest label (of equal
    ones the first) and suffix."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens of the reply, reasoning included, with those that the grammar forced; none beyond a stop string."""
    reused_tokens: int = 0
    """Prompt tokens that came from a shared prefix."""
    forced_tokens: int = 0
    """Reply tokens that the grammar left no choice about, and that were not decoded."""
    queue_seconds: float = 0.0
    """From submission to admission."""
    prefill_seconds: float = 0.0
    """From admission to the first token."""
    decode_seconds: float = 0.0
    """From the first token to the last."""
    seconds: float = 0.0
    """From submission to the end."""


class Embeddings(Frozen):
    """Vectors of some texts."""

    vectors: tuple[tuple[float, ...], ...]
    """One a text, in the order asked, each of length 1; all of one model have one size."""
    prompt_tokens: int
    """Of all texts together."""


class PendingReply:
    """A submitted request: wait for its reply, read it as it grows (once, by one reader), or give it up."""

    def __init__(self) -> None:
        self.future: Future[Reply] = Future()
        self.read = False
        """Whether somebody reads the pieces; until then the engine need not make them."""
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._arrived: Callable[[], None] = _nobody
        self.future.add_done_callback(lambda _: self._put(None))

    def result(self, timeout: float | None = None) -> Reply:
        """The finished reply; raises what ended the request instead, or TimeoutError after `timeout` seconds."""
        return self.future.result(timeout)

    def push(self, text: str) -> None:
        """Called by the engine: the reply grew by `text`."""
        self._put(text)

    def _put(self, piece: str | None) -> None:
        self._pieces.put(piece)
        self._arrived()

    def __iter__(self) -> Iterator[str]:
        """The reply's pieces as they come; raises at the end what ended the request, CancelledError included."""
        self.read = True
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # so that a second look ends as well
        self.future.result()

    async def __aiter__(self) -> AsyncIterator[str]:
        """The same on an event loop, holding no thread while it waits."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():  # its reader is gone with it
                loop.call_soon_threadsafe(arrived.set)

        self._arrived = wake
        self.read = True
        while True:
            arrived.clear()
            while not self._pieces.empty():
                if (piece := self._pieces.get()) is None:
                    self._pieces.put(None)
                    self.future.result()
                    return
                yield piece
            await arrived.wait()

    def cancel(self) -> None:
        """Give up: the engine frees the sequence at its next step. A finished request does not change."""
        self.future.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given up."""
        return self.future.cancelled()


def _nobody() -> None:
    """Called while nobody waits on an event loop."""


class EngineStats(Frozen):
    """The engine's counters since it was made; requests = finished + failed + cancelled + queued + active."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    queued: int = 0
    active: int = 0
    prompt_tokens: int = 0
    """All tokens of all admitted prompts."""
    reused_tokens: int = 0
    """Of these, those that came from a shared prefix."""
    computed_tokens: int = 0
    """Prompt tokens that were prefilled, shared prefixes once, padding included."""
    padding_tokens: int = 0
    """Of these, padding."""
    decoded_tokens: int = 0
    forced_tokens: int = 0
    """Reply tokens that a grammar left no choice about."""
    steps: int = 0
    """Decoding steps."""
    batched_rows: int = 0
    """Sequences of all steps together: `batched_rows / steps` is the mean batch width."""
    step_seconds: float = 0.0
    """Of all steps together."""
    model_seconds: float = 0.0
    """Of these, what the model itself took."""
    prefill_model_seconds: float = 0.0
    """Of prefilling, prefixes included; all of it inside the model."""
    scored_tokens: int = 0
    """Input positions of the passes that scored labels, padding included."""
    scoring_seconds: float = 0.0
    """Of these passes."""
    prefix_hits: int = 0
    """Admitted prompts that began with a kept or shared prefix."""
    prefix_bytes: int = 0
    """KV cache kept for prefixes."""
    cache_bytes: int = 0
    """KV cache of the running sequences."""


class TextEngine(Protocol):
    """What the provider needs of an engine; the MLX engine and the fake for tests both have it."""

    model: str
    context_size: int
    """Tokens of prompt and reply together that this machine has room for."""
    has_thinking: bool
    """Whether it can reason before it answers."""
    has_tool_parser: bool
    """Whether tool calls can be parsed from its text."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def load(self) -> Future[None]:
        """Load the model now; the first request does it else. EngineFailed is raised at once, ModelError by the future."""
        ...

    def submit(self, request: GenerationRequest) -> PendingReply:
        """Queue a request. RequestRefused and EngineBusy are raised at once; later failures by the pending reply."""
        ...

    def embed(self, texts: Sequence[str], deadline_seconds: float | None = None) -> Future[Embeddings]:
        """Queue texts for their vectors. RequestRefused, PromptTooLong and EngineFailed are raised at once."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `messages` make."""
        ...

    def stats(self) -> EngineStats:
        """The counters now."""
        ...

    def close(self) -> None:
        """Stop, failing what still waits. Idempotent."""
        ...
