"""Messages as one model's chat template takes them.

Templates differ in what they refuse. `Turns` asks this one, once, and fits the messages to it:

- a system turn that it refuses or leaves out (Gemma) is put before the text of the user turn that follows;
- `developer`, OpenAI's later name for `system`, becomes that where the template has no word for it;
- turns of one role in a row become one where it wants user and assistant to take turns;
- a tool's answer has the name of the function that was called, which some templates ask for;
- ids of calls become nine letters and digits where it insists on that (Mistral), the same for the same id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.protocol import Message

NINE = re.compile(r"length\s*[!=]=\s*9\b")
PROBE = "Qzx7"
EXCHANGE = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)
"""A conversation of a usual length, so that what a template says of very short ones decides nothing."""


class Turns:
    """Fits messages to one chat template. Safe from any thread."""

    def __init__(self, template: str, render: Callable[[list[dict[str, Any]]], str]) -> None:
        """Args: template: its text, empty where it is no text; render: applies it, or raises RequestRefused."""
        self._render = render
        self._knows_developer = "developer" in template
        self._wants_nine = bool(NINE.search(template))

    @cached_property
    def _takes_system(self) -> bool:
        return self._shows({"role": "system", "content": PROBE}, *EXCHANGE)

    @cached_property
    def _takes_repeats(self) -> bool:
        return self._shows(*EXCHANGE, {"role": "user", "content": PROBE})

    def _shows(self, *turns: dict[str, Any]) -> bool:
        try:
            return PROBE in self._render(list(turns))
        except RequestRefused:
            return False

    def of(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The turns to give to the template."""
        turns = [self._turn(message) for message in _with_names(messages)]
        if not self._knows_developer:
            turns = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        if any(turn["role"] == "system" for turn in turns) and not self._takes_system:
            turns = _fold(turns)
        repeats = any(one["role"] == two["role"] in ("user", "assistant") for one, two in pairwise(turns))
        if repeats and not self._takes_repeats:
            turns = _join(turns)
        return turns

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as chat templates read it: arguments of calls as objects, and no empty entries."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._id(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._id(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        return turn

    def _id(self, given: str) -> str:
        if not self._wants_nine or re.fullmatch("[0-9a-zA-Z]{9}", given):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[:9]


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """The messages; a tool's answer that lacks the function's name has that of the call with its id."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool" and message.name is None and message.tool_call_id in names:
            message = message.model_copy(update={"name": names[message.tool_call_id]})
        named.append(message)
    return named


def _fold(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns without system ones: what those say stands before the next user turn, or in one of its own at the end."""
    folded, held = [], []
    for turn in turns:
        if turn["role"] == "system":
            held.append(turn["content"])
        elif held and turn["role"] == "user":
            folded.append(turn | {"content": "\n\n".join([*held, turn["content"]])})
            held = []
        else:
            folded.append(turn)
    return [*folded, {"role": "user", "content": "\n\n".join(held)}] if held else folded


def _join(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns, where neighbours of one role that only say something are one."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        last = joined[-1] if joined else None
        plain = last is not None and last.keys() == turn.keys() == {"role", "content"}
        if last is not None and plain and last["role"] == turn["role"]:
            joined[-1] = last | {"content": f"{last['content']}\n\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined
