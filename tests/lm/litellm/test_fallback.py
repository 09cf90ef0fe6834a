"""Falling back: who is asked next, for what, and how one learns of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import litellm
import pandas as pd
import pytest

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    LeaseTimeout,
    ModelError,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.evaluation import evaluate
from dspy_toolkit.lm import Connection, close_engines, connect, root_error
from dspy_toolkit.lm.exporter import exposition
from dspy_toolkit.lm.litellm.fallback import FAILURES, Chain
from dspy_toolkit.lm.litellm.provider import count_prompt, find_engine
from dspy_toolkit.lm.protocol import GenerationRequest, PendingReply
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import FakeEngine
from tests.lm.asking import HELLO
from tests.lm.chains import Chains, Elsewhere, complete, engine_of, said

pytestmark = pytest.mark.usefixtures("engines_of_its_own")


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
    chain: Chains, elsewhere: Elsewhere, way: str, caplog: pytest.LogCaptureFixture
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
def test_the_first_answers_as_long_as_it_can(chain: Chains, way: str) -> None:
    asked = chain("hello there", "never asked")
    assert WAYS[way](asked.model) == ("hello there", asked.model)
    assert engine_of(asked, 1).requests == [] and not asked.moves


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error", [RequestRefused("bad"), EngineBusy("full"), DeadlineExceeded("late"), LeaseTimeout("held")]
)
def test_what_another_would_not_do_better_stays(chain: Chains, way: str, error: ToolkitError) -> None:
    asked = chain(error, "never asked")
    with pytest.raises(Exception, match=str(error)) as caught:
        WAYS[way](asked.model)
    assert type(root_error(caught.value)) is type(error)
    assert engine_of(asked, 1).requests == [] and not asked.moves


class BreaksOff(FakeEngine):
    """Hands out one piece, then fails."""

    def submit(self, request: GenerationRequest) -> PendingReply:
        pending = PendingReply()
        pending.push("half a ")
        pending.future.set_exception(EngineFailed("broke off"))
        return pending


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_has_begun_is_nobody_elses(chain: Chains, way: str) -> None:
    asked = chain(BreaksOff("?"), "whole")
    if "streaming" in way:
        with pytest.raises(Exception, match="broke off"):
            WAYS[way](asked.model)
        assert not asked.moves
    else:
        assert WAYS[way](asked.model)[0] == "whole"


def test_who_cannot_load_is_not_asked_again(chain: Chains) -> None:
    asked = chain(ModelError("cannot load"), "yes")
    assert [complete(asked.model)[0] for _ in range(3)] == ["yes"] * 3
    assert len(engine_of(asked, 1).requests) == 3
    assert sum(asked.moves.values()) == 1
    assert find_engine(asked.model) is engine_of(asked, 1)
    assert count_prompt(asked.model, HELLO) > 0


def test_who_fails_now_and_then_is_asked_again(chain: Chains) -> None:
    turns = iter([EngineFailed("once"), EngineFailed("twice"), "back", EngineFailed("again"), "back"])
    asked = chain(lambda request: next(turns), "instead")
    assert [complete(asked.model)[0] for _ in range(5)] == ["instead", "instead", "back", "instead", "back"]


def test_who_fails_for_good_is_out_and_its_memory_free(chain: Chains) -> None:
    asked = chain(EngineFailed("broken"), "instead")
    first = engine_of(asked, 0)
    for _ in range(FAILURES + 2):
        assert complete(asked.model)[0] == "instead"
    assert len(first.requests) == FAILURES
    for thread in threading.enumerate():
        if thread.name.startswith("close "):
            thread.join(10)
    assert first.closed


def test_one_fault_that_ends_many_requests_counts_once(chain: Chains) -> None:
    gate = threading.Barrier(8)

    class Together(FakeEngine):
        """Fails eight requests at the same time, and answers the ninth."""

        def submit(self, request: GenerationRequest) -> PendingReply:
            if request.max_tokens == 1:
                return super().submit(request)
            gate.wait(30)
            pending = PendingReply()
            pending.future.set_exception(EngineFailed("the thread died"))
            return pending

    asked = chain(Together("a"), "b")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: complete(asked.model)[0], range(8))) == ["b"] * 8
    response: Any = litellm.completion(model=asked.model, messages=HELLO, max_tokens=1)
    assert response.model == asked.model


def test_when_all_fail_the_first_reason_comes_first(chain: Chains, elsewhere: Elsewhere) -> None:
    elsewhere.error = litellm.InternalServerError("server down", "elsewhere", "big")
    asked = chain(EngineFailed("on fire"), ModelError("too large"), listed=("elsewhere/big",))
    with pytest.raises(Exception, match="on fire") as caught:
        complete(asked.model)
    error = root_error(caught.value)
    assert type(error) is EngineFailed and error.retryable
    assert str(error).index("on fire") < str(error).index("too large") < str(error).index("server down")


def test_nothing_moves_once_it_is_closed(chain: Chains, elsewhere: Elsewhere) -> None:
    slow = FakeEngine(lambda request: "word " * 300, seconds_per_token=0.05)
    asked = chain(slow, listed=("elsewhere/big",))
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(complete, asked.model)
        while not slow.stats().active:
            assert not reply.done()
        close_engines()
        with pytest.raises(Exception, match="closed"):
            reply.result(30)
    assert elsewhere.calls == []


# Through DSPy.


def through_dspy(asked: Chain, home: Path) -> Connection:
    return connect(Settings(home=home, lm=LMSettings(model=asked.model)))


def test_history_says_who_answered_and_the_cache_keeps_no_others_reply(
    chain: Chains, elsewhere: Elsewhere, tmp_path: Path
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


def test_streamify(chain: Chains, tmp_path: Path) -> None:
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


def test_what_is_compared_is_of_one_model(chain: Chains, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """An evaluation or a search is told of the engine's own failure; no row of it leaves the machine."""
    for fault in (EngineFailed("on fire"), ModelError("cannot load")):
        asked = chain(fault, listed=("elsewhere/big",))
        connection = through_dspy(asked, tmp_path / str(fault)[:3])
        frame = pd.DataFrame({"question": ["?"], "answer": ["!"], "_row": ["1"], "_group": ["1"]})
        run = partial(
            evaluate,
            dspy.Predict("question -> answer"),
            frame,
            DatasetSpec(source="rows.csv", inputs=("question",), outputs=("answer",)),
            exact_match,
            split="val",
            lm=connection.lm,
            adapter=connection.adapter,
            store=Store(str(tmp_path / "objects")),
        )
        with pytest.raises(type(fault), match=str(fault)):
            run()
        assert elsewhere.calls == [] and not asked.moves
        # A prediction may be answered elsewhere; once the engine is out, an evaluation says why it has none.
        assert connection.lm("hello", cache=False) == ["from elsewhere"]
        elsewhere.calls.clear()
        with pytest.raises(type(fault), match=str(fault)) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert ("answers predictions only" in str(caught.value)) is isinstance(fault, ModelError)
        assert elsewhere.calls == []
