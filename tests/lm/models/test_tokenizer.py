"""Templates with tools and thinking, message boundaries, and what a model's folder says of its limits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import ModelError, RequestRefused
from dspy_toolkit.lm.grammar import tool_call_grammar
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.parsing import PLAIN, split_reply
from dspy_toolkit.lm.protocol import GenerationRequest, make_request
from tests.lm.asking import STORY, ask

Tiny = Callable[..., Path]

ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
DIALOGUE: list[dict[str, Any]] = [
    {"role": "system", "content": "You classify."},
    {"role": "user", "content": "First question?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Second question?"},
]


@pytest.fixture(scope="module")
def load(tiny: Tiny) -> Callable[[str], Tokenizer]:
    return cache(lambda template: Tokenizer(tiny("llama", template=template)))


def prompt(tokenizer: Tokenizer, request: GenerationRequest) -> str:
    return tokenizer._tokenizer.decode(tokenizer.encode_request(request), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "thinking", "tools"),
    [("plain", False, False), ("thinking", True, True), ("opened", True, True), ("tools", False, True)],
)
def test_abilities(load: Any, template: str, thinking: bool, tools: bool) -> None:
    tokenizer = load(template)
    assert (tokenizer.has_thinking, tokenizer.has_tool_parser) == (thinking, tools)
    assert tokenizer.context_size == 2048


def test_tools_and_their_turns(load: Any) -> None:
    messages = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "name": "add", "arguments": '{"a": 1}'}]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    text = prompt(load("tools"), make_request(messages=messages, tools=[ADD]))
    assert '"description": "Adds."' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<|im_start|>tool\n2<|im_end|>" in text
    assert "Adds" not in prompt(load("tools"), make_request(messages=messages))


def test_thinking_is_left_to_the_template_unless_asked(load: Any) -> None:
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    opening = "<|im_start|>assistant\n"
    assert prompt(load("thinking"), ask()).endswith(opening)
    assert prompt(load("thinking"), ask(thinking=True)).endswith(opening)
    assert prompt(load("thinking"), ask(thinking=False)).endswith(closed)
    assert prompt(load("plain"), ask(thinking=False)).endswith(opening)
    # A template that always opens it is closed again.
    assert prompt(load("opened"), ask()).endswith(opening + "<think>\n")
    assert prompt(load("opened"), ask(thinking=False)).endswith(closed)


@pytest.mark.parametrize("template", ["thinking", "opened"])
def test_a_grammar_is_answered_at_once(load: Any, template: str) -> None:
    request = ask(grammar='start: "yes"')
    assert prompt(load(template), request).endswith("<think>\n\n</think>\n\n")
    assert load(template).reply_format(request, load(template).encode_request(request)) is PLAIN
    with pytest.raises(RequestRefused, match="thinking and gives a grammar"):
        load(template).encode_request(ask(grammar='start: "yes"', thinking=True))


def test_what_a_model_lacks_is_refused(load: Any) -> None:
    with pytest.raises(RequestRefused, match="no tool parser"):
        load("plain").encode_request(ask(tools=[ADD]))
    with pytest.raises(RequestRefused, match="this model has none"):
        load("tools").encode_request(ask(thinking=True))


def test_reply_format(load: Any) -> None:
    def marks(template: str, **fields: Any) -> Any:
        request = ask(**fields)
        return load(template).reply_format(request, load(template).encode_request(request))

    assert marks("plain") is PLAIN
    assert (marks("thinking").think_end, marks("thinking").opened, marks("thinking").call_start) == (
        "</think>",
        False,
        "",
    )
    assert marks("opened").opened
    assert not marks("opened", thinking=False).opened
    assert marks("tools") is PLAIN
    offered = marks("tools", tools=[ADD])
    assert (offered.call_start, offered.call_end, offered.think_end) == ("<tool_call>", "</tool_call>", "")
    reply = 'Sure.\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'
    assert [call.arguments for call in split_reply(reply, offered).tool_calls] == ['{"a": 2}']
    only = marks("tools", tools=[ADD], grammar=tool_call_grammar([ADD]))
    assert only.calls_only
    assert [call.name for call in split_reply('[{"name":"add","arguments":{"a":2}}]', only).tool_calls] == ["add"]


def test_marks_stay_in_the_text(load: Any, tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load("thinking")
    tokens = tokenizer._control.encode("<think>Hm.</think>Yes.<|im_end|>")
    assert tokenizer.decode(tokens) == "<think>Hm.</think>Yes."
    # Where the marks are special tokens, only the others are left out.
    folder = Path(shutil.copytree(tiny("llama", template="thinking"), tmp_path / "special"))
    data = json.loads((folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(data))
    special = Tokenizer(folder)
    assert special.decode(tokens) == "<think>Hm.</think>Yes."
    assert special.token_text(tokens[0]) == "<think>"


@pytest.mark.parametrize("template", ["plain", "thinking", "opened", "tools"])
def test_boundaries_are_where_messages_end(load: Any, template: str) -> None:
    tokenizer = load(template)
    request = make_request(messages=DIALOGUE)
    tokens = tokenizer.encode_request(request)
    places = tokenizer.boundaries(request)
    assert len(places) == 3
    assert places == sorted(places)
    for place, message in zip(places, DIALOGUE, strict=False):
        text = tokenizer._tokenizer.decode(tokens[:place])
        assert text.endswith(f"{message['content']}<|im_end|>\n")
    # Another prompt with the same beginning shares them.
    other = make_request(messages=[*DIALOGUE[:3], {"role": "user", "content": "Something else?"}])
    assert tokenizer.encode_request(other)[: places[2]] == tokens[: places[2]]
    assert tokenizer.boundaries(other) == places
    assert tokenizer.boundaries(make_request(messages=DIALOGUE[:1])) == []


def test_boundaries_with_tools(load: Any) -> None:
    request = make_request(messages=DIALOGUE, tools=[ADD])
    tokens = load("tools").encode_request(request)
    first = load("tools").boundaries(request)[0]
    assert "Adds" in load("tools")._tokenizer.decode(tokens[:first])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Refuses to be cut after a user's turn.
        ("{% if messages|length == 2 %}{{ raise_exception('no') }}{% endif %}KEEP", 2),
        # Rewrites what came before: no place holds.
        ("{{ messages|length }} messages\nKEEP", 0),
    ],
)
def test_boundaries_of_awkward_templates(tiny: Tiny, tmp_path: Path, template: str, expected: int) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "m"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = template.replace("KEEP", config["chat_template"])
    path.write_text(json.dumps(config))
    assert len(Tokenizer(folder).boundaries(make_request(messages=DIALOGUE))) == expected


def test_a_folder_without_a_template(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "m"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestRefused, match="chat template refuses"):
        Tokenizer(folder).encode_request(ask(STORY))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"max_position_embeddings": 512, "sliding_window": 64}, 512),
        ({"text_config": {"max_position_embeddings": 4096, "eos_token_id": 2}}, 4096),
        ({"n_positions": 1024}, 1024),
        ({}, 2**20),
    ],
)
def test_context_size(tiny: Tiny, tmp_path: Path, config: dict[str, Any], size: int) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "m"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    assert Tokenizer(folder).context_size == size


def test_tokens_that_end_a_reply(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "m"))
    assert Tokenizer(folder).stop_tokens == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert Tokenizer(folder).stop_tokens == {0, 2}
    (folder / "generation_config.json").write_text("{")
    assert Tokenizer(folder).stop_tokens == {2}
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer(folder)
