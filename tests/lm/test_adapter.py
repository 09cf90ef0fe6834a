"""Which model is sent a grammar, and what is counted when a reply cannot be parsed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from dspy_toolkit.lm.adapter import CountingChatAdapter, GrammarAdapter, RemoteChatAdapter
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine


class Route(dspy.Signature):
    """Route it."""

    request: str = dspy.InputField()
    project: Literal["lora", "clip"] = dspy.OutputField()


class OtherModel(MeteredLM):
    """Some other provider's model: notes what it is sent, and gives scripted replies."""

    def __init__(self, *replies: str) -> None:
        super().__init__("openai/some-model", engine="litellm", cache=False)
        self.replies, self.calls = list(replies), []

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        self.meter.charge()
        self.calls.append({"messages": messages, **kwargs})
        return [self.replies.pop(0)]

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return self(prompt, messages=messages, **kwargs)


GOOD = "[[ ## project ## ]]\nclip\n\n[[ ## completed ## ]]"


def test_an_mlx_model_gets_the_grammar_and_no_reminder(tmp_path: Path) -> None:
    connection = fake_connection([{"project": "lora"}], tmp_path)
    with connection.context():
        assert dspy.Predict(Route)(request="tune it").project == "lora"
    (request,) = fake_engine(connection).requests
    assert request.grammar is not None
    assert '"lora" | "clip"' in request.grammar
    assert "Respond with" not in request.messages[-1].content
    assert request.messages[-1].content.endswith("tune it")


def test_a_signature_without_grammar_gets_the_reminder(tmp_path: Path) -> None:
    connection = fake_connection(["[[ ## tags ## ]]\n[1, 2]\n\n[[ ## completed ## ]]"], tmp_path)
    with connection.context():
        assert dspy.Predict("x -> tags: set[int]")(x="?").tags == {1, 2}
    (request,) = fake_engine(connection).requests
    assert request.grammar is None
    assert "Respond with" in request.messages[-1].content


@pytest.mark.parametrize("adapter", [CountingChatAdapter(), GrammarAdapter()])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_any_other_model_gets_an_ordinary_chat_and_a_counted_retry(adapter: dspy.Adapter, way: str) -> None:
    lm, bystander = OtherModel(GOOD, "nonsense", '{"project": "clip"}'), OtherModel()
    program = dspy.Predict(Route)
    program.lm = lm  # not the one in the settings: the retry belongs to the one that was asked

    def run(request: str) -> Any:
        with dspy.context(lm=bystander, adapter=adapter):
            return program(request=request) if way == "sync" else asyncio.run(program.acall(request=request))

    assert run("first").project == "clip"
    assert (lm.meter.usage.lm_calls, lm.meter.parse_retries) == (1, 0)
    assert run("second").project == "clip"
    assert (lm.meter.usage.lm_calls, lm.meter.parse_retries) == (3, 1)
    assert all("guided_grammar" not in call for call in lm.calls)
    assert "Respond with" in lm.calls[0]["messages"][-1]["content"]
    assert bystander.meter.parse_retries == 0


def test_settings_choose_the_adapter(tmp_path: Path) -> None:
    from dspy_toolkit.lm import connect

    connection = connect(Settings(home=tmp_path, lm={"model": "openai/some-model", "api_key": "k"}))  # pyright: ignore[reportArgumentType]
    assert type(connection.adapter) is RemoteChatAdapter
    assert connection.lm.num_retries == 0
    assert connection.teacher is connection.lm


def test_an_mlx_reply_that_cannot_be_parsed_is_not_asked_for_again(tmp_path: Path) -> None:
    connection = fake_connection(["nonsense"], tmp_path, check_grammar=False)
    with connection.context(), pytest.raises(AdapterParseError):
        dspy.Predict(Route)(request="x")
    assert connection.lm.meter.usage.lm_calls == 1
    assert connection.lm.meter.parse_retries == 0
