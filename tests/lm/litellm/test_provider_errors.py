"""What the provider refuses, how errors travel through LiteLLM and DSPy, and callers that go away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest
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
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.litellm.provider import find_engine, serve
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.testing import FakeEngine, OutOfAnswers, fake_connection
from tests.lm.asking import HELLO, settled


def test_unknown_parameters_are_refused_by_name() -> None:
    with pytest.raises(RequestRefused, match="does not understand magic, wishes"):
        translate(HELLO, {"magic": 1, "wishes": 0.5, "temperature": 1.0, "user": "me"}, None)


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
    assert connection.lm.meter.usage.lm_calls == 2
    assert connection.lm.meter.usage.physical_calls == 0


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


def test_callers_that_go_away_free_their_sequences(tmp_path: Path) -> None:
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
