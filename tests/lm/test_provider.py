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
from asking import settled
from litellm.exceptions import MidStreamFallbackError

from dspy_toolkit.errors import (
    BudgetExhausted,
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    ModelError,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.lm.engine import Engine
from dspy_toolkit.lm.exchange import GenerationRequest
from dspy_toolkit.lm.provider import find_engine, serve
from dspy_toolkit.lm.translation import translate
from dspy_toolkit.testing import FakeEngine, OutOfAnswers, fake_connection

HELLO = [{"role": "user", "content": "Say hello."}]


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

    async def main() -> None:
        streams: list[Any] = [
            await litellm.acompletion(model=engine.model, messages=HELLO, stream=True) for _ in range(50)
        ]
        readers = [asyncio.create_task(anext(stream)) for stream in reversed(streams)]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 5) == 1
        await asyncio.gather(*readers)
        assert threading.active_count() < 40

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


# What is refused, and how errors travel.


def test_unknown_parameters_are_refused_by_name() -> None:
    with pytest.raises(RequestRefused, match="does not understand frequency_penalty, magic"):
        translate(HELLO, {"magic": 1, "frequency_penalty": 0.5, "temperature": 1.0, "user": "me"}, None)


@pytest.mark.parametrize(
    ("optional", "told"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"stop": 5}, "stop"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -1}, "-1"),
    ],
)
def test_bad_values_are_refused(optional: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told):
        translate(HELLO, optional, None)


@pytest.mark.parametrize("content", [None, [{"type": "image_url", "image_url": {"url": "x"}}], 5])
def test_messages_that_are_not_text_are_refused(content: Any) -> None:
    with pytest.raises(RequestRefused, match="content"):
        translate([{"role": "user", "content": content}], {}, None)


def test_litellms_default_timeout_is_nobodys_wish() -> None:
    assert translate(HELLO, {}, 600)[0].deadline_seconds is None
    assert translate(HELLO, {}, 601)[0].deadline_seconds == 601


ERRORS = [
    (EngineBusy("full"), litellm.RateLimitError),
    (DeadlineExceeded("late"), litellm.Timeout),
    (EngineFailed("broken"), litellm.InternalServerError),
    (RequestRefused("bad"), litellm.BadRequestError),
    (ModelError("gone"), litellm.BadRequestError),
]


@pytest.mark.parametrize(("error", "theirs"), ERRORS)
def test_errors_are_litellms_with_the_toolkits_behind(error: ToolkitError, theirs: type[Exception]) -> None:
    engine = FakeEngine(lambda request: error)
    serve(engine)

    async def astream() -> None:
        stream: Any = await litellm.acompletion(model=engine.model, messages=HELLO, stream=True)
        async for _ in stream:
            pass

    ways: list[Any] = [
        lambda: litellm.completion(model=engine.model, messages=HELLO),
        lambda: list(litellm.completion(model=engine.model, messages=HELLO, stream=True)),
        lambda: asyncio.run(litellm.acompletion(model=engine.model, messages=HELLO)),
        lambda: asyncio.run(astream()),
    ]
    for number, way in enumerate(ways):
        # What fails in mid-stream and may be tried again, LiteLLM puts into one more wrapping of its own.
        with pytest.raises((theirs, MidStreamFallbackError), match=str(error)) as caught:
            way()
        assert isinstance(caught.value, theirs) or number in (1, 3)
        found = root_error(caught.value)
        assert type(found) is type(error)
        assert str(found) == str(error)
    engine.close()


@pytest.mark.parametrize("error", [error for error, _ in ERRORS])
def test_errors_through_a_program(error: ToolkitError, tmp_path: Path) -> None:
    connection = fake_connection(lambda request: error, tmp_path)
    program = dspy.ChainOfThought("question -> answer: int")
    with connection.context(), pytest.raises(Exception, match=str(error)) as caught:
        program(question="?")
    assert type(root_error(caught.value)) is type(error)

    async def main() -> None:
        with connection.context():
            await program.acall(question="?")

    with pytest.raises(Exception, match=str(error)) as caught:
        asyncio.run(main())
    assert type(root_error(caught.value)) is type(error)
    assert connection.lm.meter.logical == 2
    assert connection.lm.meter.physical == 0


def test_root_error_of_others() -> None:
    assert root_error(None) is None
    assert root_error(ValueError("x")) is None
    loop = ValueError("a")
    loop.__cause__ = KeyError("b")
    loop.__cause__.__context__ = loop
    assert root_error(loop) is None
    budget = BudgetExhausted("spent")
    assert root_error(budget) is budget


def test_nobody_serves_this_model() -> None:
    with pytest.raises(ModelError, match="No engine of this process runs mlx/unknown"):
        find_engine("mlx/unknown")


def test_a_fake_that_runs_out_of_answers_says_so(tmp_path: Path) -> None:
    connection = fake_connection(["only one"], tmp_path)
    assert connection.lm("first", cache=False) == ["only one"]
    with pytest.raises(Exception, match=r"given 1 replies and is asked for one more, by .*second") as caught:
        connection.lm("second", cache=False)
    assert isinstance(root_error(caught.value), OutOfAnswers)


def test_callers_that_go_away_free_their_rows(tmp_path: Path) -> None:
    engine = FakeEngine(lambda request: "word " * 500, seconds_per_token=0.01)
    serve(engine)

    async def main() -> None:
        task = asyncio.create_task(litellm.acompletion(model=engine.model, messages=HELLO, max_tokens=500))
        stream: Any = await litellm.acompletion(model=engine.model, messages=HELLO, max_tokens=500, stream=True)
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.3)
        for waiting in (task, reader):
            waiting.cancel()
        await asyncio.gather(task, reader, return_exceptions=True)
        await stream.aclose()

    asyncio.run(main())
    stream: Any = litellm.completion(model=engine.model, messages=HELLO, max_tokens=500, stream=True)
    next(stream)
    stream.completion_stream.close()
    assert settled(engine, seconds=3).cancelled == 3
    engine.close()


# On the real model.


def test_structured_replies(connection: Connection) -> None:
    call: dict[str, Any] = {"model": connection.model, "messages": HELLO, "max_tokens": 80, "temperature": 0}
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
