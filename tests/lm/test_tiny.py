"""The tiny models are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.parsing import split_reply
from tests.lm.asking import ask
from tests.lm.tiny import WINDOW, greedy

Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "caches"),
    [
        ("llama", ["KVCache"] * 4),
        ("sliding", ["RotatingKVCache", "KVCache"] * 2),
        ("hybrid", ["ArraysCache", "KVCache"] * 2),
    ],
)
def test_random_models(tiny: Tiny, tmp_path: Path, kind: str, caches: list[str]) -> None:
    question = "one two three " * WINDOW
    first, gaps, classes = greedy(tiny(kind), tmp_path, question)
    assert classes == caches
    assert first == greedy(tiny(kind), tmp_path, question)[0]
    assert first != greedy(tiny(kind), tmp_path, "four " + question)[0]  # the reply hangs on the whole prompt
    assert min(gaps) > 1e-3, gaps


@pytest.mark.parametrize(
    ("template", "says", "text", "reasoning", "calls"),
    [
        ("thinking", ("<think>", "Hm, a sum. ", "</think>", "It is 4."), "It is 4.", "Hm, a sum.", []),
        ("opened", ("Hm, a sum. ", "</think>", "It is 4."), "It is 4.", "Hm, a sum.", []),
        ("opened", ("It is", " a thought without end"), "", "It is a thought without end", []),
        ("tools", ("<tool_call>", '{"name": "add", "arguments": {}}', "</tool_call>"), "", None, ["add"]),
        (
            "thinking",
            ("<think>", "I add.", "</think>", "<tool_call>", '{"name": "add"}', "</tool_call>"),
            "",
            "I add.",
            ["add"],
        ),
        ("tools", ("<tool_call>", "nonsense", "</tool_call>"), "<tool_call>nonsense</tool_call>", None, []),
    ],
)
def test_a_model_with_something_to_say(
    tiny: Tiny,
    tmp_path: Path,
    template: str,
    says: tuple[str, ...],
    text: str,
    reasoning: str | None,
    calls: list[str],
) -> None:
    folder = tiny(template=template, says=says)
    said, gaps, _ = greedy(folder, tmp_path, "What is 2 + 2?")
    assert said == "".join(says)
    assert min(gaps) > 1
    tokenizer = Tokenizer(folder)
    request = ask("What is 2 + 2?", tools=[{"type": "function", "function": {"name": "add"}}])
    parts = split_reply(said, tokenizer.reply_format(request, tokenizer.encode_request(request)))
    assert (parts.text, parts.reasoning, [call.name for call in parts.tool_calls]) == (text, reasoning, calls)
