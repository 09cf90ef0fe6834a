"""LiteLLM's and DSPy's ways of calling an engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import litellm
import pydantic
import pytest

from dspy_toolkit.errors import (
    RequestRefused,
)
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.litellm.provider import serve
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.testing import FakeEngine
from tests.lm.asking import HELLO, settled


class Answer(pydantic.BaseModel):
    number: int
    sure: bool
    kind: Literal["guess", "fact"]


def say_number(request: GenerationRequest) -> str:
    """The last word of the prompt, again."""
    return f"you said {request.messages[-1].content.split()[-1]}"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(say_number)
    serve(engine)
    yield engine
    engine.close()


# The four ways, on the fake.


def test_completion(fake: FakeEngine) -> None:
    response: Any = litellm.completion(model=fake.model, messages=HELLO, max_tokens=2)
    assert response.choices[0].message.content == "you said"
    assert response.choices[0].finish_reason == "length"
    assert response.usage.prompt_tokens == fake.count_tokens(fake.requests[0].messages)
    assert response.usage.completion_tokens == 2
    assert response.usage.total_tokens == response.usage.prompt_tokens + 2


def test_parameters_arrive(fake: FakeEngine) -> None:
    litellm.completion(
        model=fake.model, messages=HELLO, max_tokens=9, temperature=0.5, top_p=0.9, seed=3, stop="x", timeout=5
    )
    (request,) = fake.requests
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (9, 0.5, 0.9, 3)
    assert (request.stop, request.deadline_seconds, request.grammar) == (("x",), 5, None)
    litellm.completion(model=fake.model, messages=HELLO, stop=["a", "b"], extra_body={"guided_grammar": "start: /.*/"})
    assert (fake.requests[1].stop, fake.requests[1].grammar) == (("a", "b"), "start: /.*/")
    assert fake.requests[1].deadline_seconds is None


def test_messages_in_parts(fake: FakeEngine) -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "yes"}]
    response: Any = litellm.completion(model=fake.model, messages=[{"role": "user", "content": parts}])
    assert response.choices[0].message.content == "you said yes"


def test_streaming(fake: FakeEngine) -> None:
    chunks: list[Any] = list(litellm.completion(model=fake.model, messages=HELLO, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == ["you", " said", " hello", "."]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_async_ways_on_two_event_loops_and_many_threads(fake: FakeEngine) -> None:
    async def one(number: int) -> str:
        messages = [{"role": "user", "content": f"Say {number}"}]
        response: Any = await litellm.acompletion(model=fake.model, messages=messages)
        stream: Any = await litellm.acompletion(model=fake.model, messages=messages, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == response.choices[0].message.content
        return response.choices[0].message.content

    async def several(first: int) -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(first, first + 8)))

    with ThreadPoolExecutor(16) as pool:
        loops = [pool.submit(asyncio.run, several(100 * loop)) for loop in range(2)]
        threads = [
            pool.submit(litellm.completion, model=fake.model, messages=[{"role": "user", "content": f"Say {number}"}])
            for number in range(14)
        ]
        for loop, future in enumerate(loops):
            assert future.result(60) == [f"you said {100 * loop + number}" for number in range(8)]
        replies: list[Any] = [thread.result(60) for thread in threads]
    assert [reply.choices[0].message.content for reply in replies] == [f"you said {number}" for number in range(14)]


def test_more_streams_than_threads_of_the_loop() -> None:
    """Fifty readers of a slow engine hold no thread while they wait."""
    engine = FakeEngine(say_number, seconds_per_token=0.001)
    serve(engine)
    before = threading.active_count()  # what earlier tests left idle is not counted

    async def main() -> None:
        streams: list[Any] = [
            await litellm.acompletion(model=engine.model, messages=HELLO, stream=True) for _ in range(50)
        ]
        readers = [asyncio.create_task(anext(stream)) for stream in reversed(streams)]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 5) == 1
        await asyncio.gather(*readers)
        assert threading.active_count() < before + 30

    asyncio.run(main())
    engine.close()


# n


def test_choices(fake: FakeEngine) -> None:
    response: Any = litellm.completion(model=fake.model, messages=HELLO, n=3, temperature=1.0, seed=5)
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert [request.seed for request in fake.requests] == [5, 6, 7]
    assert response.usage.completion_tokens == 12
    assert response.usage.prompt_tokens == fake.count_tokens(fake.requests[0].messages)


@pytest.mark.parametrize("n", [0, 1000, -1, True, "2"])
def test_bad_number_of_choices(n: Any) -> None:
    with pytest.raises(RequestRefused, match=f"n is {n!r}; give a number from 1 to 64"):
        translate(HELLO, {"n": n}, None)


def test_streaming_more_than_one_choice_is_refused(fake: FakeEngine) -> None:
    with pytest.raises(Exception, match="with streaming it must be 1") as caught:
        list(litellm.completion(model=fake.model, messages=HELLO, stream=True, n=2, temperature=1.0))
    assert isinstance(root_error(caught.value), RequestRefused)
    assert fake.requests == []


# On the real model.


def test_structured_replies(connection: Connection) -> None:
    call: dict[str, Any] = {"model": connection.model, "messages": HELLO, "max_tokens": 40, "temperature": 0}
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": Answer.model_json_schema()}}
    for response_format in (Answer, schema):
        response: Any = litellm.completion(**call, response_format=response_format)
        assert response.choices[0].finish_reason == "stop"
        Answer.model_validate_json(response.choices[0].message.content)
    response = litellm.completion(**call, response_format={"type": "json_object"})
    text = response.choices[0].message.content
    assert text.startswith("{")
    if response.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    with pytest.raises(Exception, match="grammar cannot be compiled") as caught:
        bad = {"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": True}}}
        litellm.completion(**call, response_format=bad)
    assert isinstance(root_error(caught.value), RequestRefused)


def test_threads_and_loops_share_the_engine(connection: Connection, engine: Engine) -> None:
    before = settled(engine)
    program = dspy.Predict(
        "word -> kind: Literal['animal', 'plant']",
    )
    words = ["cat", "oak", "dog", "fern", "cow", "rose", "hen", "moss"]

    def in_thread(word: str) -> str:
        with connection.context():
            return program(word=word).kind

    async def on_loop() -> list[str]:
        with connection.context():
            results = await asyncio.gather(*(program.acall(word=word) for word in words))
        return [result.kind for result in results]

    with ThreadPoolExecutor(16) as pool:
        loops = [pool.submit(asyncio.run, on_loop()) for _ in range(2)]
        kinds = list(pool.map(in_thread, words))
        assert all(loop.result(120) == kinds for loop in loops)
    assert set(kinds) <= {"animal", "plant"}
    assert settled(engine).failed == before.failed


def test_streamify_gives_token_by_token(connection: Connection) -> None:
    class Story(dspy.Signature):
        topic: str = dspy.InputField()
        story: str = dspy.OutputField(max_length=40)

    program = dspy.Predict(Story)
    listener = dspy.streaming.StreamListener(signature_field_name="story")
    streamed = dspy.streamify(program, stream_listeners=[listener])

    async def read() -> tuple[list[str], str]:
        pieces, story = [], ""
        with connection.context(connection.lm.copy(cache=False, max_tokens=80)):
            async for item in streamed(topic="the sea"):
                if isinstance(item, dspy.streaming.StreamResponse):
                    pieces.append(item.chunk)
                elif isinstance(item, dspy.Prediction):
                    story = item.story
        return pieces, story

    pieces, story = asyncio.run(read())
    assert "".join(pieces).strip() == story
    assert len(pieces) > 5
