"""Falling back: who is asked next, for what, and how one learns of it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    LeaseTimeout,
    ModelError,
    ModelNotFound,
    RequestRefused,
    SettingsError,
    ToolkitError,
)
from dspy_toolkit.lm import Connection, close_engines, connect, root_error
from dspy_toolkit.lm.connection import _answer, _backends, mlx_lm, use_cache
from dspy_toolkit.lm.elsewhere import LiteLLMBackend
from dspy_toolkit.lm.exchange import GenerationRequest, TextEngine, Ticket
from dspy_toolkit.lm.fallback import FAILURES, Chain, backend_order
from dspy_toolkit.lm.metrics import exposition
from dspy_toolkit.lm.provider import EngineBackend, count_prompt, find_engine, serve
from dspy_toolkit.lm.weights import find_weights
from dspy_toolkit.settings import LMSettings, Settings, load_settings
from dspy_toolkit.testing import FakeEngine

HELLO = [{"role": "user", "content": "Say hello."}]


class Elsewhere:
    """A provider that LiteLLM reaches, in this process: what it is asked, and what it answers or raises."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def handler(self) -> Any:
        from litellm.llms.custom_llm import CustomLLM

        outer = self

        class Provider(CustomLLM):
            def completion(self, model: str, **call: Any) -> Any:
                outer.calls.append({"model": model, **call})
                if outer.error is not None:
                    raise outer.error
                response = call["model_response"]
                response.choices[0].message.content = "from elsewhere"
                response.choices[0].finish_reason = "stop"
                response.usage = litellm.Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
                return response

            async def acompletion(self, model: str, **call: Any) -> Any:
                return self.completion(model, **call)

            def streaming(self, model: str, **call: Any) -> Iterator[Any]:
                outer.calls.append({"model": model, **call})
                if outer.error is not None:
                    raise outer.error
                blank = {"is_finished": False, "finish_reason": "", "index": 0, "tool_use": None, "usage": None}
                yield {**blank, "text": "from "}
                yield {**blank, "text": "elsewhere"}
                usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                yield {**blank, "text": "", "is_finished": True, "finish_reason": "stop", "usage": usage}

            async def astreaming(self, model: str, **call: Any) -> Any:
                for piece in self.streaming(model, **call):
                    yield piece

        return Provider()


@pytest.fixture(autouse=True)
def engines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests close all engines that they see: not the session's."""
    from dspy_toolkit.lm import connection, provider

    monkeypatch.setattr(connection, "_chains", {})
    monkeypatch.setattr(provider, "_chains", {})


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    from dspy_toolkit.lm.provider import import_litellm

    import_litellm()
    provider = Elsewhere()
    monkeypatch.setattr(
        litellm,
        "custom_provider_map",
        [*litellm.custom_provider_map, {"provider": "elsewhere", "custom_handler": provider.handler()}],
    )
    litellm.utils.custom_llm_setup()
    return provider


@pytest.fixture
def chain() -> Iterator[Callable[..., Chain]]:
    """Serves a chain: first an engine that says or raises something, then others."""
    made: list[Chain] = []

    def make(*says: Any, listed: tuple[str, ...] = ()) -> Chain:
        name = f"fake@{len(made):08x}{id(made) % 16**6:06x}"
        backends: list[Any] = []
        for kind, said in zip(("mlx", "torch", "third"), says, strict=False):
            engine = said if isinstance(said, FakeEngine) else FakeEngine(_say(said), model=f"mlx/{name}")
            backends.append(EngineBackend(f"{kind}/{name}", lambda engine=engine: engine))
        backends += [LiteLLMBackend(model, {}) for model in listed]
        made.append(Chain(f"mlx/{name}", backends))
        _answer(made[-1])
        return made[-1]

    yield make
    close_engines()


def _say(said: Any) -> Callable[[GenerationRequest], Any]:
    return said if callable(said) and not isinstance(said, Exception) else lambda request: said


def engine_of(chain: Chain, index: int) -> FakeEngine:
    engine = chain.backends[index].engine()  # type: ignore[attr-defined]
    assert isinstance(engine, FakeEngine)
    return engine


def said(response: Any) -> tuple[str, str]:
    return response.choices[0].message.content, response.system_fingerprint


def complete(model: str) -> tuple[str, str]:
    response: Any = litellm.completion(model=model, messages=HELLO)
    assert response.model == response.system_fingerprint
    return said(response)


async def acomplete(model: str) -> tuple[str, str]:
    return said(await litellm.acompletion(model=model, messages=HELLO))


def stream(model: str) -> tuple[str, str]:
    return said(litellm.stream_chunk_builder(list(litellm.completion(model=model, messages=HELLO, stream=True))))


async def astream(model: str) -> tuple[str, str]:
    parts: Any = await litellm.acompletion(model=model, messages=HELLO, stream=True)
    return said(litellm.stream_chunk_builder([part async for part in parts]))


WAYS: dict[str, Callable[[str], tuple[str, str]]] = {
    "completion": complete,
    "acompletion": lambda model: asyncio.run(acomplete(model)),
    "streaming": stream,
    "astreaming": lambda model: asyncio.run(astream(model)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_moves_down_the_list_with_a_warning_a_count_and_a_name(
    chain: Callable[..., Chain], elsewhere: Elsewhere, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = chain(EngineFailed("on fire"), ModelError("no such architecture"), listed=("elsewhere/big",))
    mlx, torch, listed = (backend.name for backend in asked.backends)
    assert WAYS[way](asked.model) == ("from elsewhere", "elsewhere/big")
    assert asked.moves == {(mlx, torch): 1, (torch, listed): 1}
    first, second = [record.getMessage() for record in caplog.records if record.name.endswith("fallback")]
    assert mlx in first and torch in first and "on fire" in first and "for this request" in first
    assert torch in second and listed in second and "from now on" in second
    assert elsewhere.calls[0]["model"] == "big"
    assert f'fallbacks_total{{from="{mlx}",to="{torch}"}} 1.0' in exposition().decode()


@pytest.mark.parametrize("way", WAYS)
def test_the_first_answers_as_long_as_it_can(chain: Callable[..., Chain], way: str) -> None:
    asked = chain("hello there", "never asked")
    assert WAYS[way](asked.model) == ("hello there", asked.model)
    assert engine_of(asked, 1).requests == [] and not asked.moves


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error", [RequestRefused("bad"), EngineBusy("full"), DeadlineExceeded("late"), LeaseTimeout("held")]
)
def test_what_another_would_not_do_better_stays(chain: Callable[..., Chain], way: str, error: ToolkitError) -> None:
    asked = chain(error, "never asked")
    with pytest.raises(Exception, match=str(error)) as caught:
        WAYS[way](asked.model)
    assert type(root_error(caught.value)) is type(error)
    assert engine_of(asked, 1).requests == [] and not asked.moves


class BreaksOff(FakeEngine):
    """Hands out one piece, then fails."""

    def submit(self, request: GenerationRequest) -> Ticket:
        ticket = Ticket()
        ticket.push("half a ")
        ticket.future.set_exception(EngineFailed("broke off"))
        return ticket


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_has_begun_is_nobody_elses(chain: Callable[..., Chain], way: str) -> None:
    asked = chain(BreaksOff("?"), "whole")
    if "streaming" in way:
        with pytest.raises(Exception, match="broke off"):
            WAYS[way](asked.model)
        assert not asked.moves
    else:
        assert WAYS[way](asked.model)[0] == "whole"


def test_who_cannot_load_is_not_asked_again(chain: Callable[..., Chain]) -> None:
    asked = chain(ModelError("cannot load"), "yes")
    assert [complete(asked.model)[0] for _ in range(3)] == ["yes"] * 3
    assert len(engine_of(asked, 1).requests) == 3
    assert sum(asked.moves.values()) == 1
    assert find_engine(asked.model) is engine_of(asked, 1)
    assert count_prompt(asked.model, HELLO) > 0


def test_who_fails_now_and_then_is_asked_again(chain: Callable[..., Chain]) -> None:
    turns = iter([EngineFailed("once"), EngineFailed("twice"), "back", EngineFailed("again"), "back"])
    asked = chain(lambda request: next(turns), "instead")
    assert [complete(asked.model)[0] for _ in range(5)] == ["instead", "instead", "back", "instead", "back"]


def test_who_fails_for_good_is_out_and_its_memory_free(chain: Callable[..., Chain]) -> None:
    asked = chain(EngineFailed("broken"), "instead")
    first = engine_of(asked, 0)
    for _ in range(FAILURES + 2):
        assert complete(asked.model)[0] == "instead"
    assert len(first.requests) == FAILURES
    for thread in threading.enumerate():
        if thread.name.startswith("close "):
            thread.join(10)
    assert first.closed


def test_one_fault_that_ends_many_requests_counts_once(chain: Callable[..., Chain]) -> None:
    gate = threading.Barrier(8)

    class Together(FakeEngine):
        """Fails eight requests at the same time, and answers the ninth."""

        def submit(self, request: GenerationRequest) -> Ticket:
            if request.max_tokens == 1:
                return super().submit(request)
            gate.wait(30)
            ticket = Ticket()
            ticket.future.set_exception(EngineFailed("the thread died"))
            return ticket

    asked = chain(Together("a"), "b")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: complete(asked.model)[0], range(8))) == ["b"] * 8
    response: Any = litellm.completion(model=asked.model, messages=HELLO, max_tokens=1)
    assert response.model == asked.model


def test_when_all_fail_the_first_reason_comes_first(chain: Callable[..., Chain], elsewhere: Elsewhere) -> None:
    elsewhere.error = litellm.InternalServerError("server down", "elsewhere", "big")
    asked = chain(EngineFailed("on fire"), ModelError("too large"), listed=("elsewhere/big",))
    with pytest.raises(Exception, match="on fire") as caught:
        complete(asked.model)
    error = root_error(caught.value)
    assert type(error) is EngineFailed and error.retryable
    assert str(error).index("on fire") < str(error).index("too large") < str(error).index("server down")


def test_nothing_moves_once_it_is_closed(chain: Callable[..., Chain], elsewhere: Elsewhere) -> None:
    slow = FakeEngine(lambda request: "word " * 300, seconds_per_token=0.05)
    asked = chain(slow, listed=("elsewhere/big",))
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(complete, asked.model)
        while not slow.snapshot().active:
            assert not reply.done()
        close_engines()
        with pytest.raises(Exception, match="closed"):
            reply.result(30)
    assert elsewhere.calls == []


# Through DSPy.


def through_dspy(asked: Chain, home: Path) -> Connection:
    settings = Settings(home=home)
    use_cache(settings)
    lm, adapter = mlx_lm(asked.model, settings)
    return Connection(lm, adapter, lm, adapter)


def test_history_says_who_answered_and_the_cache_keeps_no_others_reply(
    chain: Callable[..., Chain], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    asked = chain(ModelError("gone"), listed=("elsewhere/big",))
    connection = through_dspy(asked, tmp_path)
    for _ in range(2):
        assert connection.lm("hello") == ["from elsewhere"]
    assert [entry["response_model"] for entry in connection.lm.history] == ["elsewhere/big"] * 2
    assert len(elsewhere.calls) == 2  # not answered from the cache

    same_weights = chain(ModelError("gone"), "from torch")
    connection = through_dspy(same_weights, tmp_path)
    for _ in range(2):
        assert connection.lm("hello") == ["from torch"]
    assert [entry["response_model"] for entry in connection.lm.history] == [same_weights.backends[1].name] * 2
    assert len(engine_of(same_weights, 1).requests) == 1


def test_streamify(chain: Callable[..., Chain], tmp_path: Path) -> None:
    reply = "[[ ## answer ## ]]\none two three four five\n\n[[ ## completed ## ]]"
    asked = chain(EngineFailed("on fire"), reply)
    connection = through_dspy(asked, tmp_path)
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

    assert asyncio.run(read()) == ("one two three four five",) * 2
    assert asked.moves.total() == 1


def test_what_a_listed_model_is_asked(chain: Callable[..., Chain], elsewhere: Elsewhere) -> None:
    asked = chain(ModelError("gone"), listed=("elsewhere/big",))
    call: dict[str, Any] = {"model": asked.model, "messages": HELLO, "max_tokens": 9, "temperature": 0.5, "seed": 3}
    litellm.completion(**call, extra_body={"guided_grammar": "start: /.*/"})
    given = elsewhere.calls[0]
    assert given["messages"] == HELLO
    assert "guided_grammar" not in str(given["optional_params"])
    assert given["optional_params"]["max_tokens"] == 9
    with pytest.raises(Exception, match="does not understand magic") as caught:
        litellm.completion(**call, magic=1)
    assert isinstance(root_error(caught.value), RequestRefused)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (litellm.AuthenticationError("no key", "elsewhere", "big"), ModelError),
        (litellm.NotFoundError("no model", "big", "elsewhere"), ModelError),
        (litellm.BadRequestError("bad", "big", "elsewhere"), RequestRefused),
        (litellm.RateLimitError("slow down", "elsewhere", "big"), EngineBusy),
        (litellm.Timeout("late", "big", "elsewhere"), DeadlineExceeded),
        (litellm.ServiceUnavailableError("away", "elsewhere", "big"), EngineFailed),
    ],
)
def test_errors_of_a_listed_model(elsewhere: Elsewhere, raised: Exception, told: type[ToolkitError]) -> None:
    elsewhere.error = raised
    backend = LiteLLMBackend("elsewhere/big", {})
    call: dict[str, Any] = {"messages": HELLO}
    with pytest.raises(told, match="elsewhere/big"):
        backend.completion(call)
    with pytest.raises(told, match="elsewhere/big"):
        list(backend.streaming(call))


# Settings and connecting.


def test_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr("dspy_toolkit.lm.fallback.torch_installed", lambda installed=installed: installed)
        torch = ["torch"] * installed
        fallbacks = ("openai/a", "openai/b")
        assert backend_order(LMSettings(fallbacks=fallbacks)) == ("mlx", *torch, *fallbacks)
        assert backend_order(LMSettings(backend="torch", fallbacks=fallbacks)) == ("torch", *fallbacks)
        assert backend_order(LMSettings(backend="mlx", fallbacks=fallbacks)) == ("mlx",)
        assert backend_order(LMSettings()) == ("mlx", *torch)


@pytest.mark.parametrize("name", ["gpt-4o", "mlx/smollm2-135m", "torch/x"])
def test_a_fallback_that_is_no_litellm_model_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"lm.fallbacks.*{name}"):
        load_settings(lm={"fallbacks": [name]})


def test_a_provider_that_litellm_does_not_know_is_refused_at_once(model_home: Path) -> None:
    with pytest.raises(ModelNotFound, match="nobody/big"):
        connect(load_settings(home=model_home, lm={"fallbacks": ["nobody/big"], "model": "mlx/smollm2-135m"}))


def test_a_key_goes_to_one_provider_only(model_home: Path, elsewhere: Elsewhere) -> None:
    weights = find_weights("mlx/smollm2-135m", model_home)
    for listed, keys in ((["elsewhere/a"], ["secret"]), (["elsewhere/a", "elsewhere/b"], [None, None])):
        settings = load_settings(home=model_home, lm={"fallbacks": listed, "api_key": "secret", "backend": "auto"})
        backends = [backend for backend in _backends(weights, settings) if isinstance(backend, LiteLLMBackend)]
        assert [backend._options.get("api_key") for backend in backends] == keys


@pytest.fixture
def broken(model_home: Path, tmp_path: Path) -> Path:
    """A model folder whose weights cannot be read."""
    folder = tmp_path / "broken model"
    shutil.copytree(model_home / "models" / "smollm2-135m", folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    return folder


def test_weights_that_mlx_cannot_load(
    broken: Path, model_home: Path, elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture
) -> None:
    def say(**lm: Any) -> Any:
        settings = load_settings(home=model_home, lm={"model": f"mlx/{broken}", "lease": "share", **lm})
        try:
            return connect(settings).lm("hello", cache=False)
        finally:
            close_engines()

    assert say(fallbacks=["elsewhere/big"]) == ["from elsewhere"]
    assert "elsewhere/big takes over" in caplog.text
    for lm in ({}, {"backend": "mlx", "fallbacks": ["elsewhere/big"]}):
        with pytest.raises(Exception, match="cannot load") as caught:
            say(**lm)
        assert isinstance(root_error(caught.value), ModelError)
    assert len(elsewhere.calls) == 1


def test_a_model_too_large_for_mlx_moves_when_connecting(
    model_home: Path, elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy_toolkit.lm.fallback.torch_installed", lambda: False)
    close_engines()
    limits = {"memory_limit_gb": 0.1, "lease": "share"}
    with caplog.at_level(logging.WARNING):
        connection = connect(load_settings(home=model_home, lm={"fallbacks": ["elsewhere/big"], **limits}))
    assert "needs about" in caplog.text
    assert connection.lm("hello", cache=False) == ["from elsewhere"]
    assert connection.lm.history[0]["usage"]["prompt_tokens"] == 3
    close_engines()
    with pytest.raises(ModelError, match="needs about"):
        connect(load_settings(home=model_home, lm=limits))


def test_an_engine_whose_package_cannot_be_imported_is_a_model_error() -> None:
    def make() -> TextEngine:
        raise ImportError("libmlx.so: cannot open shared object file")

    backend = EngineBackend("mlx/x", make)
    with pytest.raises(ModelError, match="libmlx"):
        backend.engine()


def test_serving_an_engine_alone(tmp_path: Path) -> None:
    engine = FakeEngine(lambda request: EngineFailed("broken"))
    serve(engine)
    with pytest.raises(Exception, match="broken") as caught:
        complete(engine.model)
    assert str(root_error(caught.value)) == "broken"
    engine.close()
