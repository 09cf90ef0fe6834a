"""Splitting a model's reply into its reasoning, its tool calls, and the text that is left.

`ReplyFormat` says how one model marks them in the replies to one request; `Tokenizer.reply_format` makes it.
`split_reply` takes a finished reply, `visible_text` one that grows.

- Reasoning is what stands before the mark that ends it, when the reply (or the prompt) begins with the mark that starts
  it. A reply that max_tokens cut inside its reasoning has reasoning and no text.
- Tool calls are looked for only where the request offers tools. A call that the model's parser cannot read, or that was
  cut, stays in the text as it was written.
- A model that writes in harmony's channels (gpt-oss) is taken apart by `harmony`.
- While a reply is streamed, its reasoning and its calls are held back; they come whole at its end. What was sent is
  always a beginning of the final text.

Calls are read by mlx_lm's own parser for the model. Its `TextStateMachine` is not used to find them: it drops the marks
of a call that cannot be read, so that the text would not be as the model wrote it; it takes a `<think>` anywhere in the
reply for reasoning; and it lies in a module that imports MLX, which the torch engine and the fake for tests do without.

Not covered: reasoning after the beginning of a reply (a later `<think>` is text).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.harmony import Said, read_channels
from dspy_toolkit.lm.protocol import GenerationRequest, ToolCall
from dspy_toolkit.store import digest


@dataclass(frozen=True)
class Budget:
    """How long a reply that begins inside its reasoning may reason, and how that ends."""

    tokens: int
    """At most."""
    end: tuple[int, ...]
    """The tokens that end it: the model's own mark, dictated when the budget is spent."""
    after: tuple[int, ...]
    """What is dictated behind them, before the answer."""


@dataclass(frozen=True)
class ReplyFormat:
    """The marks in the replies to one request."""

    think_start: str = ""
    """Begins the reasoning; empty for a model that has none, or that is told to answer at once."""
    think_end: str = ""
    opened: bool = False
    """Whether the prompt ends inside the reasoning, so that the reply begins with it."""
    call_start: str = ""
    """Begins a tool call; empty where no tools are offered."""
    call_end: str = ""
    """Ends a tool call; empty where only the end of the reply does."""
    parse_call: Callable[[str, list[dict[str, Any]]], Any] | None = None
    """The model's parser: text between the marks, and the tools; gives `{"name", "arguments"}` or a list of them."""
    tools: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    calls_only: bool = False
    """Whether the whole reply is a JSON list of calls, as `grammar.tool_call_grammar` makes sure."""
    channel: str | None = None
    """Of a model that writes in harmony's channels: what the prompt ends with behind the assistant's name."""
    budget: Budget | None = None
    """Where the reasoning has one; the prompt then ends inside it."""


def check_abilities(request: GenerationRequest, *, thinking: bool, tools: bool) -> None:
    """Refuse a request that needs what the model lacks.

    Args:
        thinking: whether the model can reason first.
        tools: whether tool calls can be parsed from its text.

    Raises:
        RequestRefused: with what to leave out.
    """
    if request.tools and not tools:
        raise RequestRefused(
            "The request offers tools, and this model has no tool parser. Leave tools out (DSPy then describes them in the "
            "prompt), or choose a model that was trained to call tools."
        )
    if (request.thinking or request.thinking_budget is not None) and not thinking:
        raise RequestRefused("The request asks for thinking, and this model has none. Leave enable_thinking out.")
    if request.thinking and request.grammar is not None and request.thinking_budget is None:
        raise RequestRefused(
            "The request asks for thinking and gives a grammar, which could not bound its length. Give thinking_budget, in "
            "tokens, or leave one of them out."
        )


PLAIN = ReplyFormat()
"""Text and nothing else."""


@dataclass(frozen=True)
class Parts:
    """A finished reply, split."""

    text: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


def split_reply(reply: str, marks: ReplyFormat = PLAIN) -> Parts:
    """Split a finished reply, which still has the model's marks in it. Never raises."""
    if marks.channel is not None:
        return _split_channels(reply, marks)
    reasoning, rest = _reasoning(reply, marks)
    if marks.calls_only:
        calls = _read_calls(rest or "", marks)
        return Parts("" if calls else rest or "", (reasoning or "").strip() or None, calls)
    if rest is None:
        # Never closed. Some models call a tool out of their thinking without closing it.
        reasoning, mark, call = (
            (reasoning or "").partition(marks.call_start) if marks.call_start else (reasoning, "", "")
        )
        rest = mark + call
    text, calls = _take_calls(rest, marks)
    return Parts(text, (reasoning or "").strip() or None, calls)


def visible_text(reply: str, marks: ReplyFormat = PLAIN) -> str:
    """What of a growing reply can be sent already: a beginning of the text that `split_reply` gives in the end."""
    if marks is PLAIN:
        return reply
    if marks.calls_only:
        return ""
    if marks.channel is not None:
        return _final(read_channels(reply, marks.channel))
    _, rest = _reasoning(reply, marks)
    if rest is None or _may_begin(rest.lstrip(), marks.think_start):
        return ""
    if not marks.call_start:
        return rest
    if (start := rest.find(marks.call_start)) >= 0:
        return rest[:start].rstrip()
    held = next((n for n in range(len(marks.call_start) - 1, 0, -1) if rest.endswith(marks.call_start[:n])), 0)
    # Space before a call is left out of the text, so it waits until something follows.
    return rest[: len(rest) - held].rstrip()


def answer_start(reply: str, marks: ReplyFormat = PLAIN) -> int | None:
    """Where in `reply` its answer begins, behind its reasoning; None while there is none."""
    if marks is PLAIN:
        return 0
    if marks.channel is not None:
        return next((each.start for each in read_channels(reply, marks.channel) if each.channel == "final"), None)
    _, rest = _reasoning(reply, marks)
    return None if rest is None or _may_begin(rest.lstrip(), marks.think_start) else len(reply) - len(rest)


def _final(said: list[Said]) -> str:
    return "".join(each.content for each in said if each.channel == "final")


def _split_channels(reply: str, marks: ReplyFormat) -> Parts:
    said = read_channels(reply, marks.channel or "")
    reasoning = "\n".join(each.content.strip() for each in said if each.channel == "analysis" and each.to is None)
    text, calls = _final(said), []
    for each in said:
        if each.to is not None:
            body = json.dumps({"name": each.to, "arguments": each.content})
            read = _read_calls(body, ReplyFormat(calls_only=True), len(calls)) if marks.tools and each.whole else ()
            calls += read
            text += "" if read else each.content
    if calls and not text:
        text = "\n".join(each.content.strip() for each in said if each.channel == "commentary" and each.to is None)
    if marks.calls_only and (read := _read_calls(text, marks)):
        text, calls = "", list(read)
    return Parts(text, reasoning or None, tuple(calls))


def _may_begin(text: str, mark: str) -> bool:
    return bool(mark) and len(text) < len(mark) and mark.startswith(text)


def _reasoning(reply: str, marks: ReplyFormat) -> tuple[str | None, str | None]:
    """(reasoning or None, what follows it or None while it is open)."""
    if not marks.think_end:
        return None, reply
    body = reply.lstrip()
    if body.startswith(marks.think_start):
        body = body.removeprefix(marks.think_start)
    elif not marks.opened:
        return None, reply
    elif _may_begin(body, marks.think_start):
        return body, None
    reasoning, mark, rest = body.partition(marks.think_end)
    return (reasoning, rest.lstrip()) if mark else (reasoning, None)


def _take_calls(text: str, marks: ReplyFormat) -> tuple[str, tuple[ToolCall, ...]]:
    """(text without the calls, the calls)."""
    if not marks.call_start:
        return text, ()
    kept, calls = "", []
    while (start := text.find(marks.call_start)) >= 0:
        body = start + len(marks.call_start)
        end = text.find(marks.call_end, body) if marks.call_end else len(text)
        if end < 0:
            break
        after = end + len(marks.call_end)
        read = _read_calls(text[body:end], marks, len(calls))
        kept += text[:start] if read else text[:after]
        calls += read
        text = text[after:]
    kept += text
    return (kept.rstrip(), tuple(calls)) if calls else (kept, ())


def _read_calls(body: str, marks: ReplyFormat, number: int = 0) -> tuple[ToolCall, ...]:
    """The calls that `body` holds, or none if it is malformed; `number` calls came before."""
    parse = _parse_json if marks.calls_only else marks.parse_call
    if parse is None:
        return ()
    try:
        parsed = parse(body, list(marks.tools))
        found = parsed if isinstance(parsed, list) else [parsed]
        return tuple(_tool_call(call, number + index) for index, call in enumerate(found))
    except Exception:  # isolation boundary: a model's parser is fed whatever the model wrote
        return ()


def _parse_json(body: str, tools: list[dict[str, Any]]) -> Any:
    return json.loads(body)


def _tool_call(call: dict[str, Any], index: int) -> ToolCall:
    name, arguments = call["name"], call.get("arguments", {})
    if isinstance(arguments, str):  # some models write them as JSON in JSON
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("A call needs a name, and its arguments must be an object.")
    text = json.dumps(arguments, ensure_ascii=False)
    # From the content, not at random: the same conversation is the same prompt to every cache.
    return ToolCall(id=f"call_{digest(name, text, index)[:24]}", name=name, arguments=text)
