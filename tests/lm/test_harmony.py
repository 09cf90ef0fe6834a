"""gpt-oss's channels: what of a reply is the answer, what reasoning, what a call."""

from __future__ import annotations

import re

import pytest

from dspy_toolkit.lm.harmony import ANALYSIS, FINAL
from dspy_toolkit.lm.parsing import ReplyFormat, answer_start, split_reply, visible_text

THOUGHT = "<|channel|>analysis<|message|>A sum.<|end|>"
ANSWER = "<|start|>assistant<|channel|>final<|message|>It is 4."
CALL = "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
TOOLS = ({"type": "function", "function": {"name": "add"}},)


def marks(channel: str = "", *, tools: bool = False) -> ReplyFormat:
    return ReplyFormat(channel=channel, tools=TOOLS if tools else ())


@pytest.mark.parametrize(
    ("opening", "reply", "text", "reasoning"),
    [
        ("", THOUGHT + ANSWER, "It is 4.", "A sum."),
        ("", THOUGHT + THOUGHT.replace("A sum", "So 4").replace("<|channel|>", "<|start|>assistant<|channel|>", 1) + ANSWER,
         "It is 4.", "A sum.\nSo 4."),
        ("", "<|channel|>analysis<|message|>A sum without", "", "A sum without"),
        ("", "<|channel|>ana", "", None),
        ("", "It is 4.", "It is 4.", None),
        (FINAL, "It is 4.", "It is 4.", None),
        (ANALYSIS, "A sum.<|end|>" + ANSWER, "It is 4.", "A sum."),
        ("", THOUGHT + ANSWER + "<|end|>", "It is 4.", "A sum."),
    ],
)  # fmt: skip
def test_the_final_channel_is_the_answer(opening: str, reply: str, text: str, reasoning: str | None) -> None:
    parts = split_reply(reply, marks(opening))
    assert (parts.text, parts.reasoning, parts.tool_calls) == (text, reasoning, ())


def test_a_call_is_read_and_its_preamble_is_text() -> None:
    preamble = "<|start|>assistant<|channel|>commentary<|message|>I add.<|end|>"
    parts = split_reply(f'{THOUGHT}{preamble}{CALL}{{"a": 1}}', marks(tools=True))
    assert (parts.text, parts.reasoning) == ("I add.", "A sum.")
    assert [(call.name, call.arguments) for call in parts.tool_calls] == [("add", '{"a": 1}')]
    named_first = ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}'
    assert [call.arguments for call in split_reply(named_first, marks(tools=True)).tool_calls] == ['{"a": 2}']


@pytest.mark.parametrize("arguments", ["not JSON", "[1]"])
def test_a_call_that_cannot_be_read_stays_text(arguments: str) -> None:
    parts = split_reply(THOUGHT + CALL + arguments, marks(tools=True))
    assert (parts.text, parts.tool_calls) == (arguments, ())


@pytest.mark.parametrize(
    "reply", [THOUGHT + ANSWER, f'{THOUGHT}{CALL}{{"a": 1}}', "It is 4.", " to=functions.add<|channel|>x<|message|>{}"]
)
def test_what_was_streamed_is_a_beginning_of_the_text(reply: str) -> None:
    whole = split_reply(reply, marks(tools=True)).text
    for end in range(len(reply) + 1):
        if re.search("<[^>]*$", reply[:end]):
            continue  # a mark is one token, and comes whole
        assert whole.startswith(visible_text(reply[:end], marks(tools=True))), reply[:end]


def test_stop_strings_are_looked_for_in_the_answer() -> None:
    assert answer_start(THOUGHT, marks()) is None
    assert answer_start(THOUGHT + ANSWER, marks()) == len(THOUGHT + ANSWER) - len("It is 4.")
    assert answer_start("It is", marks(FINAL)) == 0
