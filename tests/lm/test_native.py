"""DSPy's own engine contract: programs, streams, tools and errors through `dspy.LM(engine=…)`."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest
from dspy import lm15

from dspy_toolkit.errors import EngineBusy, RequestRefused
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.lm.native import AsyncNativeEngine, NativeEngine, translate_native
from dspy_toolkit.testing import FakeEngine

ADD = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})


def native(engine: Any, **options: Any) -> dspy.LM:
    pair: dict[str, Any] = {"engine": NativeEngine(engine), "async_engine": AsyncNativeEngine(engine)}
    name = engine if isinstance(engine, str) else engine.model
    return dspy.LM(name, cache=False, num_retries=0, **pair, **options)


def test_it_answers_as_through_litellm(connection: Connection) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}
    lm = native(connection.model, **options)
    through = dspy.LM(connection.model, engine="litellm", cache=False, **options)
    assert lm("Name a colour.") == through("Name a colour.")
    assert asyncio.run(lm.acall("Name a colour.")) == lm("Name a colour.")
    # This project's adapter gives a grammar, for which DSPy's request has no field: it is refused, not dropped.
    with (
        dspy.context(lm=lm, adapter=connection.adapter),
        pytest.raises(dspy.LMUnsupportedFeatureError, match="guided_grammar"),
    ):
        dspy.Predict("question -> answer: bool")(question="Is water wet?")


def test_requests_as_the_engine_reads_them() -> None:
    said = [
        lm15.Message.user("Add."),
        lm15.Message.assistant([lm15.ThinkingPart("Hm."), lm15.ToolCallPart("c1", "add", {"a": 1})]),
        lm15.Message("tool", (lm15.ToolResultPart("c1", (lm15.TextPart("1"),), name="add"),)),
    ]
    config = lm15.Config(
        max_tokens=90, stop=("x",), logprobs=2, presence_penalty=0.5, extensions={"min_p": 0.1},
        reasoning=lm15.Reasoning("high", thinking_budget=20),
    )  # fmt: skip
    request = translate_native(lm15.Request("m", tuple(said), system="Be kind.", tools=(ADD,), config=config))
    assert [(turn.role, turn.content, turn.name) for turn in request.messages] == [
        ("system", "Be kind.", None), ("user", "Add.", None), ("assistant", "", None), ("tool", "1", "add"),
    ]  # fmt: skip
    assert request.messages[2].tool_calls[0].arguments == '{"a": 1}'
    assert (request.max_tokens, request.stop, request.logprobs, request.min_p) == (90, ("x",), 2, 0.1)
    assert (request.thinking, request.thinking_budget, request.reasoning_effort) == (True, 20, "high")
    assert (request.presence_penalty, request.tools[0]["function"]["name"]) == (0.5, "add")
    one = lm15.Config(tool_choice=lm15.ToolChoice("required", allowed=("add",)))
    assert translate_native(lm15.Request("m", (said[0],), tools=(ADD,), config=one)).grammar
    image = lm15.Message("user", (lm15.ImagePart(data="AAAA"),))
    with pytest.raises(RequestRefused, match="type image"):
        translate_native(lm15.Request("m", (image,)))
    with pytest.raises(RequestRefused, match="service_tier"):
        translate_native(lm15.Request("m", (said[0],), config=lm15.Config(service_tier="fast")))


def test_streams_and_what_a_reply_is_made_of() -> None:
    call = '<think>A sum.</think><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    engine = FakeEngine(["One two three.", call, "One two three."], tools=True, thinking=True)
    request = lm15.Request(engine.model, (lm15.Message.user("Hi"),), tools=(ADD,))
    events = list(NativeEngine(engine).stream(request))
    assert [event.type for event in events][0 :: len(events) - 1] == ["start", "end"]
    assert "".join(event.delta.text for event in events if event.type == "delta") == "One two three."
    assert len(events) > 4
    response = NativeEngine(engine).complete(request)
    assert [part.type for part in response.message.parts] == ["thinking", "tool_call"]
    assert (response.finish_reason, response.tool_calls[0].input) == ("tool_call", {"a": 1})
    assert response.usage.output_tokens > 0

    async def read() -> list[Any]:
        return [event async for event in AsyncNativeEngine(engine).stream(request)]

    assert [type(event) for event in asyncio.run(read())] == [type(event) for event in events]
    engine.close()


def test_errors_are_sorted() -> None:
    engine = FakeEngine([RequestRefused("the seed is odd"), EngineBusy("full")])
    with pytest.raises(dspy.LMError, match="the seed is odd") as caught:
        native(engine)(messages=None, prompt="Hi")
    assert isinstance(root_error(caught.value), RequestRefused)
    with pytest.raises(lm15.RateLimitError, match="full"):
        NativeEngine(engine).complete(lm15.Request(engine.model, (lm15.Message.user("Hi"),)))
    engine.close()


def test_a_saved_program_names_its_engine() -> None:
    engine = FakeEngine(["red"], model="mlx/fake@named")
    assert NativeEngine.load_state(NativeEngine(engine).dump_state()).dump_state() == {"model": "mlx/fake@named"}
    engine.close()
