"""OpenAI's routes, by OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.serving.keys import add_key
from dspy_toolkit.settings import Settings
from tests.serving.conftest import Running, fake, running, serving, wait_for

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def client(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=20)


def test_the_official_client_chats_streams_and_asks_for_a_schema(promoted: Settings) -> None:
    replies: list[Any] = ["Hello there.", "One two three.", '{"city":"Paris"}', RequestRefused("the seed is odd")]
    settings, engine = fake(promoted, replies, check_grammar=False)
    with running(settings) as server, client(server) as api:
        (model,) = [found.id for found in api.models.list()]
        assert model == engine.model
        said = api.chat.completions.create(model=model, messages=HELLO, temperature=0, seed=1, max_tokens=20)
        assert said.choices[0].message.content == "Hello there." and said.choices[0].finish_reason == "stop"
        assert said.usage and said.usage.completion_tokens > 0 and said.model == model
        with api.chat.completions.create(
            model=model.partition("@")[0], messages=HELLO, stream=True, stream_options={"include_usage": True}
        ) as stream:
            parts = list(stream)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "One two three."
        assert len([part for part in parts if part.choices]) > 2
        assert next(part.usage.total_tokens for part in parts if part.usage) > 0
        schema: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
        said = api.chat.completions.create(model=model, messages=HELLO, response_format=form)
        assert json.loads(said.choices[0].message.content or "") == {"city": "Paris"}
        assert engine.requests[2].grammar
        with pytest.raises(openai.BadRequestError, match="the seed is odd"):
            api.chat.completions.create(model=model, messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            api.chat.completions.create(model="gpt-5", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="does not understand"):
            api.chat.completions.create(model=model, messages=HELLO, extra_body={"wishes": 3})
        with pytest.raises(openai.BadRequestError, match="not taken from a request"):
            api.chat.completions.create(model=model, messages=HELLO, extra_body={"api_base": "http://127.0.0.1:9"})


def test_the_servers_limits_hold_however_a_request_is_written(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: "word " * 100)
    settings = serving(settings, max_tokens=8)
    with running(settings) as server, client(server) as api:
        model = engine.model
        for options in ({}, {"max_tokens": 100}, {"max_completion_tokens": 100}, {"max_tokens": 100, "n": 2}):
            said = api.chat.completions.create(model=model, messages=HELLO, **options)
            assert [choice.finish_reason for choice in said.choices] == ["length"] * options.get("n", 1)
            assert said.usage and said.usage.completion_tokens == 8 * options.get("n", 1)
        with api.chat.completions.create(model=model, messages=HELLO, max_tokens=100, stream=True) as stream:
            assert "".join(part.choices[0].delta.content or "" for part in stream).split() == ["word"] * 8
        assert api.chat.completions.create(model=model, messages=HELLO, max_tokens=3).usage.completion_tokens == 3  # type: ignore[union-attr]
        assert {request.max_tokens for request in engine.requests} == {8, 3}
        before = len(engine.requests)
        for n in (0, 17):
            with pytest.raises(openai.UnprocessableEntityError, match="n: "):
                api.chat.completions.create(model=model, messages=HELLO, n=n)
        # What OpenAI's client sends beside a request's own fields, as others send it: in a field of its own.
        for hidden in ({"max_tokens": 100}, {"max_completion_tokens": 100}, {"n": 64}, {"stream": True}):
            body = {"model": model, "messages": HELLO, "extra_body": hidden}
            refused = server.http.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_fields")
        assert len(engine.requests) == before
        body = {"model": model, "messages": HELLO, "extra_body": {"top_k": 1}}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200
        assert engine.requests[-1].top_k == 1


def test_tools_are_called_whole_and_streamed(promoted: Settings) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    settings, _ = fake(promoted, lambda _: call, check_grammar=False, tools=True)
    with running(settings) as server, client(server) as api:
        (model,) = [found.id for found in api.models.list()]
        said = api.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER])
        (called,) = said.choices[0].message.tool_calls or []
        with api.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER], stream=True) as stream:
            names = [
                each.function.name
                for part in stream
                for choice in part.choices
                for each in choice.delta.tool_calls or []
                if each.function
            ]
    assert called.type == "function" and json.loads(called.function.arguments) == {"city": "Paris"}
    assert said.choices[0].finish_reason == "tool_calls" and "weather" in names


def test_a_key_is_needed_where_there_are_keys_and_a_closed_stream_stops(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: "word " * 400, seconds_per_token=0.05)
    _, key = add_key(promoted, "app")
    with running(settings) as server:
        with client(server, "wrong") as api, pytest.raises(openai.AuthenticationError):
            api.models.list()
        with client(server, key) as api:
            stream = api.chat.completions.create(model=engine.model, messages=HELLO, stream=True)
            next(iter(stream))
            stream.close()
            wait_for(lambda: engine.stats().active == 0, 5)
            with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
                api.chat.completions.create(model=engine.model, messages=HELLO, timeout=0.4)
            wait_for(lambda: engine.stats().active == engine.stats().queued == 0, 5)
    assert engine.stats().cancelled == 2 and engine.stats().finished == 0
