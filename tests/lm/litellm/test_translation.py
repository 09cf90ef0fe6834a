"""LiteLLM's words in, the engine's out: parameters, formats under all their names, tools, thinking, turns."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Literal

import jsonschema
import llguidance
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.lm.protocol import GenerationRequest
from tests.lm.asking import HELLO


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"{name}s.", "parameters": parameters}}


ADD, FIND = tool("add", a={"type": "integer"}, b={"type": "integer"}), tool("find", text={"type": "string"})


def one(**optional: Any) -> GenerationRequest:
    (request,) = translate(HELLO, optional, None)
    return request


def say(grammar: str | None, seed: int) -> str:
    """Random bytes that the grammar allows, to its end."""
    assert grammar is not None
    draw, said = random.Random(seed), bytearray()
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    while not matcher.is_stopped():
        allowed = np.flatnonzero(
            np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        )
        # A few bytes often, so that strings and lists come to their end.
        near = [byte for byte in allowed if chr(byte) in '"]}ab1,']
        byte = int(draw.choice(near if near and draw.random() < 0.8 else list(allowed)))
        assert matcher.consume_token(byte), matcher.get_error()
        if byte < 256:
            said.append(byte)
    assert not matcher.is_error(), matcher.get_error()
    return said.decode()


# Sampling


def test_sampling_parameters() -> None:
    request = one(
        top_k=5, min_p=0.1, repetition_penalty=1.1, top_p=0.9, temperature=0.7, seed=3, max_completion_tokens=7
    )
    assert (request.top_k, request.min_p, request.repetition_penalty, request.top_p) == (5, 0.1, 1.1, 0.9)
    assert (request.temperature, request.seed, request.max_tokens) == (0.7, 3, 7)
    assert one(top_k=-1, presence_penalty=0, frequency_penalty=0.0).top_k == 0
    assert one(extra_body={"top_k": 2, "min_p": 0.2}).top_k == 2


@pytest.mark.parametrize(
    ("optional", "told"),
    [
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"1": 200}}, "logit_bias"),
        ({"guided_decoding_backend": "xgrammar", "magic": 1}, "guided_decoding_backend, magic"),
        ({"logprobs": 5}, "logprobs is 5; give True"),
        ({"top_logprobs": 5}, "Give both"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs.*21"),
    ],
)
def test_parameters_that_are_refused(optional: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told) as caught:
        one(**optional)
    assert "\n" not in str(caught.value)


def test_logprobs() -> None:
    assert one().logprobs is None
    assert one(logprobs=False).logprobs is None
    assert one(logprobs=True).logprobs == 0
    assert one(logprobs=True, top_logprobs=3).logprobs == 3


def test_labels_to_score() -> None:
    asked = {"prefix": "Label: ", "labels": ["a", "b"], "suffix": "."}
    for request in (one(label_scores=asked), one(extra_body={"label_scores": asked})):
        assert request.label_scores is not None
        assert (request.label_scores.prefix, request.label_scores.labels) == ("Label: ", ("a", "b"))
    # What an LM sends with every call does not matter to it.
    assert (
        one(label_scores=asked, temperature=1.0, max_tokens=3, seed=4, top_p=0.5, logprobs=True, top_logprobs=5)
        == request
    )


@pytest.mark.parametrize(
    ("optional", "told"),
    [
        ({"label_scores": ["a", "b"]}, "label_scores is .*give {'labels'"),
        ({"label_scores": {"labels": "ab"}}, "label_scores is"),
        ({"label_scores": {"labels": ["a", "a"]}}, "label_scores.labels: a label comes twice: 'a'"),
        ({"label_scores": {"labels": ["a", 1]}}, "label_scores.labels.1"),
        ({"label_scores": {"labels": ["a"], "sufix": "."}}, "label_scores.sufix"),
        ({"label_scores": {"labels": ["a"]}, "n": 2}, "n is 2; with label_scores it must be 1"),
        ({"label_scores": {"labels": ["a"]}, "guided_choice": ["a"]}, "beside them grammar"),
        ({"label_scores": {"labels": ["a"]}, "stop": "x"}, "beside them stop"),
        ({"label_scores": {"labels": ["a"]}, "tools": [ADD], "enable_thinking": True}, "beside them tools, thinking"),
    ],
)
def test_labels_that_are_refused(optional: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told) as caught:
        one(**optional)
    assert "\n" not in str(caught.value)


def test_choices_share_their_prompt() -> None:
    for optional in ({"n": 3}, {"n": 3, "temperature": 1.0}, {"n": 3, "temperature": 1.0, "seed": 5}):
        requests = translate(HELLO, optional, None)
        assert len({request.messages for request in requests}) == 1
    assert [request.seed for request in requests] == [5, 6, 7]
    first, *others = translate(HELLO, {"n": 3, "temperature": 0, "seed": 5}, None)
    assert others == [first, first]


# Formats

scalars = st.one_of(
    st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 50}, st.integers(-99, 99)),
    st.builds(lambda length: {"type": "string", "maxLength": length}, st.integers(0, 12)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["x", 'quo"te', "é/"]}, {"const": "only"}]),
)
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 3}, inner),
        st.lists(st.tuples(st.sampled_from(["a", "b c", 'd"', "type", "\x7f"]), inner), min_size=1, max_size=3).map(
            lambda pairs: {
                "type": "object",
                "properties": dict(pairs),
                "required": [name for name, _ in pairs][:1],
                "additionalProperties": False,
            }
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=4,
)


def json_ways(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"guided_json": schema},
        {"guided_json": json.dumps(schema)},
        {"extra_body": {"guided_json": schema}},
        {"structured_outputs": {"json": schema}},
        {"extra_body": {"structured_outputs": {"json": schema, "regex": None}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
    ]


@settings(deadline=None, max_examples=60)
@given(schemas, st.integers(0, 2**32))
def test_json_of_a_schema(schema: dict[str, Any], seed: int) -> None:
    grammars = {one(**optional).grammar for optional in json_ways(schema)}
    assert len(grammars) == 1
    jsonschema.validate(json.loads(say(grammars.pop(), seed)), schema)


def fits(schema: dict[str, Any], value: Any) -> bool:
    text = json.dumps(value, separators=(",", ":")).encode()
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), one(guided_json=schema).grammar, log_level=0)
    return matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting()


A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        ({"type": "object", **A}, False),
        ({"type": "array", "items": {"type": "object", **A}}, False),
        ({"anyOf": [{"type": "object", **A}, {"type": "null"}]}, False),
        ({"$defs": {"N": {"type": "object", **A}}, "$ref": "#/$defs/N"}, False),
        # Said otherwise, or one object that must fit several schemas.
        ({"type": "object", **A, "additionalProperties": {"type": "integer"}}, True),
        ({"type": "object", **A, "required": ["a", "b"]}, True),
        ({"type": "object", **A, "required": ["a"], "minProperties": 2}, True),
        ({"allOf": [{"type": "object", **A}, {"type": "object", **B}]}, True),
        ({"type": "object", **A, "anyOf": [{"type": "object", **B}]}, True),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}, True),
        # A property that is called like a keyword.
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "allOf": {"type": "null"}}}, True),
    ],
)
def test_no_properties_that_the_schema_does_not_name(schema: dict[str, Any], more: bool) -> None:
    wrap = (lambda value: [value]) if schema.get("type") == "array" else (lambda value: value)
    if "minProperties" not in schema and "b" not in schema.get("required", ()):
        assert fits(schema, wrap({"a": 1}))
    assert fits(schema, wrap({"a": 1, "b": 2})) is more
    assert not fits(schema, wrap({"a": 1, "!" * 700: 2})) or more


patterns = st.recursive(
    st.sampled_from(["a", "[0-9]", "/", "\\.", "é", "\n", '"', " ", "[^a]", "x|y"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.builds(lambda p, low: f"({p}){{{low},{low + 2}}}", inner, st.integers(0, 2)),
        st.builds(lambda p: f"(?:{p})?", inner),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=80)
@given(patterns, st.integers(0, 2**32))
def test_a_regular_expression(pattern: str, seed: int) -> None:
    grammars = {one(guided_regex=pattern).grammar, one(structured_outputs={"regex": pattern}).grammar}
    assert len(grammars) == 1
    said = say(grammars.pop(), seed)
    assert re.fullmatch(pattern, said), (pattern, said)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 99)
)
def test_a_choice(choices: list[str], seed: int) -> None:
    assert say(one(guided_choice=choices).grammar, seed) in choices
    assert one(structured_outputs={"choice": choices}).grammar == one(guided_choice=tuple(choices)).grammar


def test_a_grammar_in_either_dialect() -> None:
    assert one(guided_grammar='start: "a"').grammar == 'start: "a"'
    gbnf = 'root ::= "say " word\nword ::= "yes" | "no"\n'
    for optional in ({"guided_grammar": gbnf}, {"structured_outputs": {"grammar": gbnf}}):
        assert {say(one(**optional).grammar, seed) for seed in range(20)} == {"say yes", "say no"}
    with pytest.raises(RequestRefused, match="cannot be compiled"):
        one(guided_grammar="root ::= (((")


class Answer(pydantic.BaseModel):
    kind: Literal["guess", "fact"]


def test_models_and_objects() -> None:
    for optional in ({"response_format": Answer}, {"guided_json": Answer}):
        assert Answer.model_validate_json(say(one(**optional).grammar, 1)).kind in ("guess", "fact")
    for optional in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        assert isinstance(json.loads(say(one(**optional).grammar, 3)), dict)
    for optional in ({"response_format": {"type": "text"}}, {"structured_outputs": {"json_object": False}}):
        assert one(**optional).grammar is None


@pytest.mark.parametrize(
    ("optional", "told"),
    [
        ({"guided_choice": []}, "guided_choice is .*a list of texts"),
        ({"guided_choice": "yes"}, "a list of texts"),
        ({"guided_regex": 5}, "guided_regex is '5'"),
        ({"guided_json": "{"}, "guided_json is not JSON"),
        ({"guided_json": [1]}, "a JSON schema"),
        ({"guided_json": {}, "guided_regex": "a"}, "more than one format: guided_json, guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "more than one format"),
        ({"response_format": {"type": "xml"}}, "response_format is .*xml"),
        ({"response_format": {"type": "json_schema"}}, "with a schema"),
        ({"structured_outputs": {}}, "structured_outputs is .*one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "one of"),
        ({"structured_outputs": {"structural_tag": "x"}}, "one of"),
        ({"structured_outputs": "json"}, "one of"),
    ],
)
def test_formats_that_are_refused(optional: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told) as caught:
        one(**optional)
    assert "\n" not in str(caught.value)


# Tools


def test_the_model_may_call() -> None:
    for optional in ({}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}):
        request = one(tools=[ADD, FIND], **optional)
        assert (request.tools, request.grammar) == ((ADD, FIND), None)
    request = one(tools=[ADD], tool_choice="none", guided_regex="a")
    assert (request.tools, request.grammar) == ((), "start: /a/")
    assert one(tool_choice="auto", parallel_tool_calls=False).tools == ()


def calls(request: GenerationRequest, seed: int) -> list[dict[str, Any]]:
    said = json.loads(say(request.grammar, seed))
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in request.tools}
    for call in said:
        assert call.keys() == {"name", "arguments"}
        jsonschema.validate(call["arguments"], schemas[call["name"]])
    return said


def test_the_model_must_call() -> None:
    said = [calls(one(tools=[ADD, FIND], tool_choice="required"), seed) for seed in range(30)]
    assert {call["name"] for each in said for call in each} == {"add", "find"}
    assert {len(each) for each in said} > {1, 2}
    single = one(tools=[ADD, FIND], tool_choice="required", parallel_tool_calls=False)
    assert all(len(calls(single, seed)) == 1 for seed in range(20))
    named = one(tools=[ADD, FIND], tool_choice={"type": "function", "function": {"name": "find"}})
    assert named.tools == (FIND,)
    assert all([call["name"] for call in calls(named, seed)] == ["find"] for seed in range(5))
    nothing = one(tools=[{"type": "function", "function": {"name": 'quo"te'}}], tool_choice="required")
    assert json.loads(say(nothing.grammar, 0))[0]["name"] == 'quo"te'


@pytest.mark.parametrize(
    ("optional", "told"),
    [
        ({"tools": [ADD], "parallel_tool_calls": False}, "only a grammar can promise"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice is 'sometimes'"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "'sub'; the tools are: add",
        ),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"name": "add"}]}, "tools is .*give a list"),
        ({"tools": "add"}, "tools is add"),
        ({"tools": [ADD], "response_format": {"type": "json_object"}}, "calls nothing"),
        ({"functions": [{"name": "add"}]}, "does not understand functions"),
    ],
)
def test_tools_that_are_refused(optional: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told):
        one(**optional)


# Thinking


@pytest.mark.parametrize(
    ("optional", "thinking"),
    [
        ({}, None),
        ({"enable_thinking": False}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"extra_body": {"chat_template_kwargs": {"thinking": False}}}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}, "enable_thinking": False}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "default"}, None),
    ],
)
def test_thinking(optional: dict[str, Any], thinking: bool | None) -> None:
    assert one(**optional).thinking is thinking


def test_how_much_and_how_long() -> None:
    for effort, ours in (("minimal", "low"), ("medium", "medium"), ("xhigh", "high"), ("none", None)):
        assert one(reasoning_effort=effort).reasoning_effort == ours
    request = one(thinking={"type": "enabled", "budget_tokens": 100}, max_tokens=200)
    assert (request.thinking, request.thinking_budget) == (True, 100)
    assert one(thinking_budget=50, max_tokens=200).thinking_budget == 50


def test_penalties_and_bias() -> None:
    request = one(presence_penalty=0.5, frequency_penalty=-2, logit_bias={"7": -100, "12": 3.5})
    assert (request.presence_penalty, request.frequency_penalty) == (0.5, -2)
    assert request.logit_bias == ((7, -100.0), (12, 3.5))
    for optional in (
        {"logit_bias": {"cat": 1}},
        {"logit_bias": {"3": 101}},
        {"logit_bias": [1]},
        {"presence_penalty": 3},
    ):
        with pytest.raises(RequestRefused, match=next(iter(optional))):
            one(**optional)


@pytest.mark.parametrize(
    "optional",
    [
        {"enable_thinking": "yes"},
        {"enable_thinking": True, "reasoning_effort": "none"},
        {"thinking": {"type": "enabled", "tokens": 100}},
        {"reasoning_effort": "enormous"},
        {"chat_template_kwargs": {"custom": 1}},
        {"chat_template_kwargs": 7},
        {"reasoning_effort": 3},
    ],
)
def test_thinking_that_is_refused(optional: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused, match="enable_thinking"):
        one(**optional)


# Turns


def test_turns_with_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    ]
    _, asked, answered = translate(messages, {}, None)[0].messages
    assert (asked.content, asked.tool_calls[0].name, asked.tool_calls[0].arguments) == ("", "add", '{"a": 1}')
    assert (answered.content, answered.tool_call_id) == ("2", "c1")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type image_url.*text only"),
        ({"role": "user", "content": ["x"]}, "text only"),
        ({"role": "user", "content": None}, "content"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]},
            "calls a tool",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]},
            "calls a tool",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "calls a tool"),
    ],
)
def test_turns_that_are_refused(message: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told):
        translate([message], {}, None)
