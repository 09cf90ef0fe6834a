"""A model at a server that speaks OpenAI's API: what it is sent, with whose key, and what becomes of what it does wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.json_adapter import JSONAdapter
from dspy.utils.callback import BaseCallback

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    ModelError,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    SettingsError,
    ToolkitError,
)
from dspy_toolkit.lm import Connection, connect, root_error
from dspy_toolkit.lm.litellm import patience
from dspy_toolkit.lm.litellm.patience import Patience
from dspy_toolkit.settings import load_settings
from tests.lm.openai_server import (
    AWAY,
    BROKEN,
    BUSY,
    DROP,
    EMPTY,
    HANG,
    NO_MODEL,
    TOO_LONG,
    WRONG_KEY,
    Fault,
    OpenAIServer,
    closed_address,
)

KEY = "sk-planted-0123"


class Ask(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    answer: Literal["four", "five"] = dspy.OutputField()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setattr(patience, "FAILED_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    # The key of OpenAI itself, which no other address may see.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    with OpenAIServer(lambda body: {"answer": "four"}) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: no two servers have the same address, and so no two the same keys."""
    return tmp_path_factory.mktemp("remote")


def to(server: OpenAIServer, home: Path, **lm: Any) -> Connection:
    sections = {name: lm.pop(name) for name in ("reflection", "teacher", "judge") if name in lm}
    lm = {"model": "openai/NAME", "api_base": server.address, "timeout": 20, **lm}
    return connect(load_settings(home=home, lm=lm, **sections))


def ask(connection: Connection) -> str:
    with connection.context():
        return dspy.Predict(Ask)(question="2 + 2?").answer


def failure(connection: Connection) -> ToolkitError:
    with pytest.raises(Exception) as caught:
        ask(connection)
    fault = root_error(caught.value)
    assert fault is not None and "\n" not in str(fault)
    return fault


def test_what_a_model_at_an_address_is_sent(server: OpenAIServer, home: Path) -> None:
    connection = to(server, home)
    assert ask(connection) == "four"
    [sent] = server.received
    assert sent.path == "/v1/chat/completions" and sent.body["model"] == "NAME"
    assert (sent.body["temperature"], sent.body["max_tokens"]) == (0.0, 256)
    assert "response_format" not in sent.body  # LiteLLM does not know what NAME can
    assert isinstance(connection.adapter, ChatAdapter) and not isinstance(connection.adapter, JSONAdapter)
    assert connection.lm.meter.usage.physical_calls == 1 and connection.lm.meter.usage.prompt_tokens > 20
    assert ask(connection) == "four" and len(server.received) == 1  # from the cache


def test_a_model_that_takes_a_schema_is_sent_one(server: OpenAIServer, home: Path) -> None:
    connection = to(server, home, model="openai/gpt-4o")
    assert isinstance(connection.adapter, JSONAdapter)
    assert ask(connection) == "four"
    wanted = server.received[0].body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"]["properties"]["answer"]["enum"] == ["four", "five"]


def test_streaming(server: OpenAIServer, home: Path) -> None:
    server.say = lambda body: {"answer": "four and a half"}
    connection = to(server, home)
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    streamed = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    async def read() -> tuple[str, str]:
        pieces, answer = "", ""
        with connection.context():
            async for item in streamed(question="?"):
                if isinstance(item, dspy.streaming.StreamResponse):
                    pieces += item.chunk
                elif isinstance(item, dspy.Prediction):
                    answer = item.answer
        return pieces, answer

    assert asyncio.run(read()) == ("four and a half",) * 2
    assert server.received[0].body["stream"]


def test_each_role_is_sent_its_own_key_and_no_other(server: OpenAIServer, home: Path) -> None:
    with OpenAIServer(server.say) as other:
        connection = to(
            server,
            home,
            api_key="sk-task",
            reflection={"model": "openai/large", "api_base": other.address, "api_key": "sk-reflection"},
            teacher={"api_base": other.address},
            judge={"temperature": 0.5},
        )
        for lm in (connection.lm, connection.reflection, connection.teacher, connection.judge):
            lm("hello", cache=False)
        assert [each.authorization for each in server.received] == ["Bearer sk-task", "Bearer sk-task"]
        # The teacher has another address, and so no key: neither the task's, nor OpenAI's own of the environment.
        assert [each.authorization for each in other.received] == ["Bearer sk-reflection", "Bearer none"]
        sent = [(each.body["temperature"], each.body["max_tokens"]) for each in (*server.received, *other.received)]
        assert sent == [(0.0, 256), (0.5, 1_000), (1.0, 16_000), (0.0, 256)]


@pytest.mark.parametrize("fault", [BUSY, AWAY, BROKEN, DROP, EMPTY, Fault(500), Fault(529), Fault(raw=b"{}")])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_may_pass_is_asked_again_and_counts_once(server: OpenAIServer, home: Path, fault: Fault, way: str) -> None:
    ended: list[BaseException | None] = []

    class Watch(BaseCallback):
        def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            ended.append(exception)

    connection = to(server, home)
    server.faults.append(fault)
    with dspy.context(callbacks=[Watch()]):
        said = connection.lm("hi") if way == "sync" else asyncio.run(connection.lm.acall("hi"))
    assert "four" in said[0]
    assert (len(server.received), connection.lm.meter.usage.lm_calls, ended) == (2, 1, [None])
    assert connection.lm("hi") == said if way == "sync" else True
    assert len(server.received) == 2  # the good reply is what the cache keeps


@pytest.mark.parametrize(
    ("fault", "kind", "says", "asked"),
    [
        (BUSY, EngineBusy, r"no room now \(HTTP 429: Rate limit reached\)", 6),
        (AWAY, EngineBusy, r"no room now \(HTTP 503: The model is loading\)", 6),
        (Fault(429, retry_after="3600"), EngineBusy, "no room now", 1),
        (Fault(500, "oops"), EngineFailed, r"failed \(HTTP 500: oops\)", 3),
        (BROKEN, EngineFailed, "failed .*Unterminated string", 3),
        (DROP, EngineFailed, r"failed \(Connection error", 3),
        (EMPTY, EngineFailed, "gave an empty reply", 3),
        (HANG, DeadlineExceeded, r"did not answer within 0\.3 s .*Raise the timeout of \[lm\]", 1),
        (Fault(504, "slow"), DeadlineExceeded, "within its own limit", 1),
        (WRONG_KEY, ModelError, r"does not let us in \(HTTP 401: .*Set the api_key of \[lm\]\.$", 1),
        (Fault(403), ModelError, "does not let us in", 1),
        (Fault(429, "No money", "insufficient_quota"), ModelError, "does not let us in .*No money", 1),
        (NO_MODEL, ModelNotFound, r"is not there .*Correct \[lm\]", 1),
        (TOO_LONG, PromptTooLong, r"refuses the request .*8192 tokens\)\. Shorten the prompt", 1),
        (Fault(422, "no such field"), RequestRefused, "no such field", 1),
    ],
)
def test_what_does_not_pass_is_one_line_with_the_next_command(
    server: OpenAIServer,
    home: Path,
    fault: Fault,
    kind: type[ToolkitError],
    says: str,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.5)
    server.always = fault
    found = failure(to(server, home, timeout=0.3 if fault is HANG else 20, api_key=KEY))
    assert type(found) is kind
    assert found.retryable is (kind in (EngineBusy, EngineFailed, DeadlineExceeded))
    assert f"openai/NAME at {server.address}" in str(found) or fault is EMPTY
    with pytest.raises(kind, match=says):
        raise found
    assert KEY not in str(found)
    # How many fit into half a second of waiting hangs on the jitter.
    assert len(server.received) == asked if asked < 6 else 5 <= len(server.received) <= 7


def test_nobody_listens(server: OpenAIServer, home: Path) -> None:
    found = failure(to(server, home, api_base=closed_address(), reflection={}))
    assert type(found) is EngineFailed and found.retryable
    assert "cannot be reached: [Errno" in str(found) and "Start its server, or correct [lm]." in str(found)


def test_a_key_that_a_server_repeats_is_not_in_the_message(server: OpenAIServer, home: Path) -> None:
    server.always = Fault(401, f"Incorrect API key provided: {KEY}.")
    assert KEY not in str(failure(to(server, home, api_key=KEY)))


def test_no_key_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = failure(connect(load_settings(home=home, lm={"model": "openai/NAME"})))
    assert type(found) is ModelError and "or its provider's environment variable" in str(found)


def test_a_provider_that_nobody_knows(home: Path) -> None:
    connection = connect(load_settings(home=home, lm={"model": "openai/NAME"}, judge={"model": "nobody/big"}))
    with pytest.raises(ModelNotFound, match=r"\[judge\] names 'nobody/big'.*Write provider/model"):
        _ = connection.judge


def test_a_server_is_waited_for_as_long_as_it_asks(caplog: pytest.LogCaptureFixture) -> None:
    busy, failed = EngineBusy("full"), EngineFailed("broken")
    asked = Patience().pause(busy, 7.0)
    assert asked is not None and 7 <= asked <= 8.75
    assert Patience().pause(busy, 3600.0) is None
    own = Patience()
    pauses = iter(lambda: own.pause(busy), None)
    assert 80 < sum(pauses) <= patience.BUSY_SECONDS  # type: ignore[arg-type]
    twice = Patience()
    assert [twice.pause(failed) for _ in range(3)] == [*patience.FAILED_PAUSES, None]
    for fault in (DeadlineExceeded("late"), RequestRefused("bad"), ModelError("gone")):
        assert Patience().pause(fault) is None


def test_a_documented_reasoning_model(home: Path) -> None:
    """docs/operations.md: `[reflection] model = "openai/gpt-5-mini"`, with nothing else said."""
    connection = connect(
        load_settings(home=home, lm={"model": "openai/NAME"}, reflection={"model": "openai/gpt-5-mini"})
    )
    assert connection.reflection.kwargs["max_completion_tokens"] == 16_000
    # A task's or a judge's defaults are none that it takes, and give way; what was written is refused.
    task = connect(load_settings(home=home, lm={"model": "openai/gpt-5-mini"})).lm
    assert (task.kwargs["temperature"], task.kwargs["max_completion_tokens"]) == (None, 16_000)
    with pytest.raises(SettingsError, match=r"\[lm\] temperature: openai/gpt-5-mini reasons.*Correct \[lm\]"):
        connect(load_settings(home=home, lm={"model": "openai/gpt-5-mini", "temperature": 0.5}))


def test_a_default_length_is_lowered_to_what_a_provider_allows(home: Path) -> None:
    def most(**section: Any) -> int:
        reflection = {"model": "openai/gpt-4-turbo", **section}
        return connect(load_settings(home=home, lm={"model": "openai/NAME"}, reflection=reflection)).reflection.kwargs[
            "max_tokens"
        ]

    assert most() == 4096
    assert most(max_tokens=9_000) == 9_000  # somebody knows better
    assert most(api_base="http://127.0.0.1:1/v1") == 16_000  # another's model of that name


def test_no_key_is_in_history_or_state_or_log(
    server: OpenAIServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = to(server, home, api_key=KEY)
    server.faults.append(BUSY)
    with caplog.at_level(logging.DEBUG):
        ask(connection)
    assert "Asked again" in caplog.text
    program = dspy.Predict(Ask)
    program.lm = connection.lm
    for text in (caplog.text, str(connection.lm.history), str(program.dump_state()), repr(connection.lm)):
        assert KEY not in text


def test_what_a_call_costs_is_counted_by_litellms_prices(server: OpenAIServer, home: Path) -> None:
    import litellm

    price = {
        "input_cost_per_token": 0.001,
        "output_cost_per_token": 0.002,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    litellm.register_model({"openai/PRICED": price})
    connection = to(server, home, model="openai/PRICED")
    lm = connection.lm.metered(usd=0.000001)
    with connection.context(lm):
        dspy.Predict(Ask)(question="3 + 1?")
        spent = lm.meter.usage
        assert spent.usd == pytest.approx(0.001 * spent.prompt_tokens + 0.002 * spent.completion_tokens)
        with pytest.raises(Exception, match="dollars is spent"):
            dspy.Predict(Ask)(question="1 + 3?")
    assert len(server.received) == 1


def test_calls_at_once_in_one_event_loop_wait_for_the_first_price(server: OpenAIServer, home: Path) -> None:
    import litellm

    litellm.register_model({"openai/DEAR": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001,
                                            "litellm_provider": "openai", "mode": "chat"}})  # fmt: skip
    lm = to(server, home, model="openai/DEAR").lm.metered(usd=1_000.0)

    async def ask_three() -> None:
        await asyncio.wait_for(asyncio.gather(*(lm.acall(f"{number}?") for number in range(3))), 30)

    asyncio.run(ask_three())
    assert len(server.received) == lm.meter.usage.lm_calls == 3
    assert lm.meter.usage.usd > 0
