"""What a caller gets back through LiteLLM and DSPy: reasoning, tool calls, log-probabilities, usage, timings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest
from litellm.llms.custom_llm import CustomLLM
from litellm.types.utils import ModelResponse

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.adapter import GrammarAdapter
from dspy_toolkit.lm.litellm.provider import serve
from dspy_toolkit.lm.litellm.translation import chunk, fill, last_chunks
from dspy_toolkit.lm.protocol import Reply, TokenLogprob, ToolCall
from dspy_toolkit.testing import FakeEngine, fake_connection, fake_engine
from tests.lm.asking import HELLO
from tests.lm.chains import registered
from tests.lm.litellm.test_translation import ADD, FIND

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SKIP: dict[str, Any] = {"_skip_mcp_handler": True}
"""Without it, LiteLLM imports its proxy's dependencies for any call that has tools."""


@pytest.fixture
def make(closing: Callable[[FakeEngine], FakeEngine]) -> Callable[..., FakeEngine]:
    def make(*replies: str, **options: Any) -> FakeEngine:
        engine = closing(FakeEngine(replies, **options))
        serve(engine)
        return engine

    return make


def complete(engine: FakeEngine, **options: Any) -> Any:
    return litellm.completion(model=engine.model, messages=HELLO, **options)


def test_reasoning_is_kept_apart(make: Any) -> None:
    engine = make("<think>Hm.</think>\n\nHello.", "<think>Hm, and so on", thinking=True)
    message = complete(engine).choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello.", "Hm.")
    cut = complete(engine, max_tokens=5, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.choices[0].message.reasoning_content.startswith("Hm")
    assert [request.thinking for request in engine.requests] == [None, True]


def test_tool_calls(make: Any) -> None:
    engine = make(f"Let me add.\n{CALL}", "Three.", tools=True)
    response = complete(engine, tools=[ADD, FIND], **SKIP)
    (choice,) = response.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me add.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "add", {"a": 1, "b": 2})
    # The answer goes back as it came, and the model sees it.
    turns = [*HELLO, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    answer: Any = litellm.completion(model=engine.model, messages=turns, tools=[ADD], **SKIP)
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == ("Three.", None)
    sent = engine.requests[1].messages
    assert (sent[1].tool_calls[0].id, sent[2].tool_call_id) == (call.id, call.id)


def test_a_call_that_is_required(make: Any) -> None:
    engine = make('[{"name":"add","arguments":{"a":1,"b":2}},{"name":"find","arguments":{"text":"x"}}]', tools=True)
    (choice,) = complete(engine, tools=[ADD, FIND], tool_choice="required", **SKIP).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["add", "find"]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)


def test_what_the_model_lacks_is_refused(make: Any) -> None:
    engine = make("x")
    for options, told in (
        ({"tools": [ADD], **SKIP}, "no tool parser"),
        ({"enable_thinking": True}, "this model has none"),
    ):
        with pytest.raises(Exception, match=told) as caught:
            complete(engine, **options)
        assert isinstance(root_error(caught.value), RequestRefused)
    assert engine.requests == []


def test_logprobs(make: Any) -> None:
    engine = make("Hello.", "Hello.", "Hello.")
    (choice,) = complete(engine, logprobs=True, top_logprobs=1).choices
    assert [(each.token, each.logprob) for each in choice.logprobs.content] == [("Hello", 0.0), (".", 0.0)]
    assert choice.logprobs.content[0].bytes == list(b"Hello")
    assert [top.token for top in choice.logprobs.content[0].top_logprobs] == ["Hello"]
    (output,) = dspy.LM(engine.model, engine="litellm", cache=False, logprobs=True, top_logprobs=1)("Hi")
    assert output["text"] == "Hello."
    assert len(output["logprobs"].content) == 2
    assert getattr(complete(engine).choices[0], "logprobs", None) is None


def test_usage_and_timings() -> None:
    replies = [
        Reply(
            text="x",
            finish_reason="stop",
            prompt_tokens=100,
            completion_tokens=4,
            reused_tokens=80,
            forced_tokens=1,
            queue_seconds=0.25,
            prefill_seconds=0.5,
            decode_seconds=1.0,
            seconds=1.75,
        )
    ] * 2
    response = fill(ModelResponse(), "m", replies)
    usage: Any = response.usage  # pyright: ignore[reportAttributeAccessIssue]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 8, 108)
    assert usage.prompt_tokens_details.cached_tokens == 80
    assert (
        response._hidden_params["engine"]
        == [
            {
                "queue_seconds": 0.25,
                "prefill_seconds": 0.5,
                "decode_seconds": 1.0,
                "seconds": 1.75,
                "reused_tokens": 80,
                "forced_tokens": 1,
            }
        ]
        * 2
    )


def test_timings_reach_the_caller_and_dspy_history(make: Any) -> None:
    engine = make("one two three", "one two three", seconds_per_token=0.01)
    response = complete(engine, n=1)
    (timings,) = response._hidden_params["engine"]
    assert timings["seconds"] >= timings["decode_seconds"] >= 0.03
    assert response._hidden_params["custom_llm_provider"] == "mlx"
    lm = dspy.LM(engine.model, engine="litellm", cache=False)
    lm("Hi")
    assert lm.history[-1]["response"]._hidden_params["engine"][0]["seconds"] >= 0.03


def test_half_a_character_has_no_bytes() -> None:
    reply = Reply(
        text="é",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        logprobs=(TokenLogprob(token="\ufffd", logprob=-0.5, top=(("\ufffd", -0.5), ("a", -1.0))),),
    )
    (token,) = fill(ModelResponse(), "m", [reply]).choices[0].logprobs.content  # pyright: ignore[reportAttributeAccessIssue]
    assert token.bytes is None
    assert [top.bytes for top in token.top_logprobs] == [None, [97]]


# Streaming


@pytest.fixture
def stream() -> Iterator[Callable[[list[str], Reply], Any]]:
    """Streams pieces and a finished reply through LiteLLM, as the provider does."""

    class Streamer(CustomLLM):
        def streaming(self, *args: Any, **call: Any) -> Any:
            yield from map(chunk, pieces)
            yield from last_chunks(replies[0])

    pieces: list[str] = []
    replies: list[Reply] = []

    def run(new: list[str], reply: Reply) -> Any:
        pieces[:], replies[:] = new, [reply]
        response: Any = litellm.completion(
            model="streamer/x", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        return list(response)

    with registered("streamer", Streamer()):
        yield run


def test_a_stream_ends_with_what_is_not_text(stream: Any) -> None:
    call = ToolCall(id="c1", name="add", arguments='{"a": 1}')
    reply = Reply(
        text="Yes, so.",
        finish_reason="tool_calls",
        reasoning="Hm.",
        tool_calls=(call, call.model_copy(update={"id": "c2"})),
        logprobs=(TokenLogprob(token="Yes", logprob=-0.5),),
        prompt_tokens=5,
        completion_tokens=3,
        reused_tokens=2,
    )
    chunks = stream(["Yes", ", so", "."], reply)
    choices = [choice for each in chunks for choice in each.choices]  # the last chunk has the usage and no choice
    assert [each.delta.content for each in choices if each.delta.content] == ["Yes", ", so", "."]
    built: Any = litellm.stream_chunk_builder(chunks)
    message = built.choices[0].message
    assert (message.content, message.reasoning_content) == ("Yes, so.", "Hm.")
    assert [(each.id, each.function.name, each.function.arguments) for each in message.tool_calls] == [
        ("c1", "add", '{"a": 1}'),
        ("c2", "add", '{"a": 1}'),
    ]
    assert built.choices[0].finish_reason == "tool_calls"
    assert (built.usage.prompt_tokens, built.usage.completion_tokens) == (5, 3)
    assert [each for each in choices if getattr(each, "logprobs", None)]


def test_a_stream_of_text_alone_has_no_more_chunks() -> None:
    reply = Reply(text="Yes.", finish_reason="stop", prompt_tokens=5, completion_tokens=3)
    assert len(list(last_chunks(reply))) == 1


def test_no_reasoning_is_streamed_as_content(make: Any) -> None:
    engine = make("<think>Hm, hm.</think>\n\nHello there.", thinking=True)
    chunks = complete(engine, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "Hello there."


# DSPy's programs with tools


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Sum(dspy.Signature):
    """Answer with the tools."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    answer: str = dspy.OutputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def test_react_calls_tools_as_text(tmp_path: Path) -> None:
    steps = [
        {"next_thought": "I add.", "next_tool_name": "add", "next_tool_args": {"a": 1, "b": 2}},
        {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": {}},
        {"reasoning": "It was three.", "answer": "3"},
    ]
    connection = fake_connection(steps, tmp_path)
    with connection.context():
        result = dspy.ReAct("question -> answer", tools=[add])(question="1 + 2?")
    assert result.answer == "3"
    assert result.trajectory["observation_0"] == 3
    assert all(request.grammar and not request.tools for request in fake_engine(connection).requests)


def test_tool_calls_as_text(tmp_path: Path) -> None:
    text = '[[ ## answer ## ]]\nsoon\n\n[[ ## calls ## ]]\n{"tool_calls": [{"name": "add", "args": {"a": 1, "b": 2}}]}'
    connection = fake_connection([text + "\n\n[[ ## completed ## ]]"], tmp_path)
    with connection.context():
        result = dspy.Predict(Sum)(question="1 + 2?", tools=[dspy.Tool(add)])
    assert [(call.name, call.args) for call in result.calls.tool_calls] == [("add", {"a": 1, "b": 2})]
    (request,) = fake_engine(connection).requests
    assert (request.tools, request.grammar) == ((), None)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_tool_calls_of_a_model_that_has_them(tmp_path: Path, way: str) -> None:
    connection = fake_connection([CALL, "[[ ## answer ## ]]\n3\n\n[[ ## completed ## ]]"], tmp_path, tools=True)
    litellm.register_model(
        {connection.model: {"litellm_provider": "mlx", "mode": "chat", "supports_function_calling": True}}
    )
    adapter = GrammarAdapter(use_native_function_calling=True)
    program = dspy.Predict(Sum)

    def run(question: str) -> Any:
        with dspy.context(lm=connection.lm, adapter=adapter):
            call = {"question": question, "tools": [dspy.Tool(add)]}
            return program(**call) if way == "sync" else asyncio.run(program.acall(**call))

    result = run("1 + 2?")
    assert [(call.name, call.args) for call in result.calls.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert run("And now?").answer == "3"
    first, second = fake_engine(connection).requests
    assert [tool["function"]["name"] for tool in first.tools] == ["add"]
    assert first.grammar is None
    assert "Respond with" in second.messages[-1].content  # no grammar sees to the format
    # What one call found out about tools does not stick to the adapter.
    with dspy.context(lm=connection.lm, adapter=adapter), pytest.raises(Exception, match="Script another reply"):
        dspy.Predict("x -> y: bool")(x="?")
