"""Taking replies apart: reasoning, tool calls, text; whole and while they grow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.lm.parsing import PLAIN, ReplyFormat, split_reply, visible_text


def parse(text: str, tools: list[dict[str, Any]]) -> Any:
    return json.loads(text)


THINKING = ReplyFormat(think_start="<think>", think_end="</think>")
OPENED = ReplyFormat(think_start="<think>", think_end="</think>", opened=True)
TOOLS = ReplyFormat(call_start="<tool_call>", call_end="</tool_call>", parse_call=parse)
BOTH = ReplyFormat(
    think_start="<think>", think_end="</think>", call_start="<tool_call>", call_end="</tool_call>", parse_call=parse
)
ENDLESS = ReplyFormat(call_start="[TOOL_CALLS]", call_end="", parse_call=parse)
ONLY = ReplyFormat(calls_only=True)
FORMATS = [PLAIN, THINKING, OPENED, TOOLS, BOTH, ENDLESS, ONLY]

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def taken(reply: str, marks: ReplyFormat) -> tuple[str, str | None, list[tuple[str, str]]]:
    parts = split_reply(reply, marks)
    return parts.text, parts.reasoning, [(call.name, call.arguments) for call in parts.tool_calls]


@pytest.mark.parametrize(
    ("reply", "marks", "text", "reasoning"),
    [
        ("<think>x</think>y", PLAIN, "<think>x</think>y", None),
        ("Hello.", THINKING, "Hello.", None),
        (" Hello. \n", THINKING, " Hello. \n", None),
        ("<think>\nHm.\n</think>\n\nYes.", THINKING, "Yes.", "Hm."),
        ("\n<think>Hm.</think>Yes. ", THINKING, "Yes. ", "Hm."),
        ("<think>\n\n</think>\n\nYes.", THINKING, "Yes.", None),
        ("<think>Hm, and", THINKING, "", "Hm, and"),  # cut by max_tokens
        ("<think>", THINKING, "", None),
        ("<thi", THINKING, "<thi", None),
        ("", THINKING, "", None),
        ("I say <think> now</think>.", THINKING, "I say <think> now</think>.", None),
        ("Hm.</think>Yes.", OPENED, "Yes.", "Hm."),
        ("<think>Hm.</think>Yes.", OPENED, "Yes.", "Hm."),  # opened twice
        ("Hm, and", OPENED, "", "Hm, and"),
        ("", OPENED, "", None),
        ("<think>a</think>b</think>c", THINKING, "b</think>c", "a"),
    ],
)
def test_reasoning(reply: str, marks: ReplyFormat, text: str, reasoning: str | None) -> None:
    assert taken(reply, marks) == (text, reasoning, [])


@pytest.mark.parametrize(
    ("reply", "marks", "text", "calls"),
    [
        (CALL, TOOLS, "", [("add", '{"a": 1}')]),
        (f"Let me see.\n{CALL}", TOOLS, "Let me see.", [("add", '{"a": 1}')]),
        (f"{CALL}\n{CALL.replace('1', '2')}", TOOLS, "", [("add", '{"a": 1}'), ("add", '{"a": 2}')]),
        (CALL, PLAIN, CALL, []),  # no tools were offered
        (CALL, THINKING, CALL, []),
        (CALL[:-5], TOOLS, CALL[:-5], []),  # cut
        ("<tool_call>{nonsense</tool_call>", TOOLS, "<tool_call>{nonsense</tool_call>", []),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', TOOLS, None, []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', TOOLS, None, []),
        ('<tool_call>{"name": "f"}</tool_call>', TOOLS, "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', TOOLS, "", [("f", '{"a": 1}')]),
        (f"<tool_call>[]x</tool_call> {CALL}", TOOLS, "<tool_call>[]x</tool_call>", [("add", '{"a": 1}')]),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g"}]', ENDLESS, "", [("f", "{}"), ("g", "{}")]),
        ('[{"name":"f","arguments":{"é":1}}]', ONLY, "", [("f", '{"é": 1}')]),
        ('[{"name":"f","argu', ONLY, None, []),
    ],
)
def test_tool_calls(reply: str, marks: ReplyFormat, text: str | None, calls: list[tuple[str, str]]) -> None:
    assert taken(reply, marks) == (reply if text is None else text, None, calls)


def test_reasoning_before_calls() -> None:
    call = [("add", '{"a": 1}')]
    assert taken(f"<think>I add.</think>\n\n{CALL}", BOTH) == ("", "I add.", call)
    # A call out of reasoning that was never closed is a call still; one inside closed reasoning is a thought.
    assert taken(f"<think>I add.\n{CALL}", BOTH) == ("", "I add.", call)
    assert taken(f"<think>Shall I {CALL}? No.</think>Four.", BOTH) == ("Four.", f"Shall I {CALL}? No.", [])


def test_ids_of_calls() -> None:
    first, second = split_reply(CALL + CALL, TOOLS).tool_calls
    assert first.id != second.id
    assert split_reply(CALL + CALL, TOOLS).tool_calls == (first, second)


def test_a_parser_that_raises_anything() -> None:
    def broken(text: str, tools: Any) -> Any:
        raise ZeroDivisionError

    marks = ReplyFormat(call_start="<tool_call>", call_end="</tool_call>", parse_call=broken)
    assert taken(CALL, marks) == (CALL, None, [])


pieces = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "<", "<to", "[TOOL_CALLS]", " ", "\n", "a", "{}", "é"]
)


@settings(max_examples=500)
@given(st.lists(pieces, max_size=8).map("".join), st.sampled_from(FORMATS))
def test_what_was_sent_begins_the_text(reply: str, marks: ReplyFormat) -> None:
    """However the reply is cut into pieces: nothing that was sent is taken back, and no reasoning is sent."""
    whole, before = split_reply(reply, marks), ""
    for end in range(len(reply) + 1):
        sent = visible_text(reply[:end], marks)
        assert sent.startswith(before)
        before = sent
    assert whole.text.startswith(before)
    if marks is PLAIN:
        assert (before, whole.text) == (reply, reply)
