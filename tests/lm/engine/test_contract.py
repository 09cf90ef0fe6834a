"""What every engine does: the fake, the real one on MLX, and the same weights on torch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    RequestRefused,
)
from dspy_toolkit.lm.protocol import (
    GenerationRequest,
    TextEngine,
    make_request,
)
from dspy_toolkit.settings import LMSettings
from dspy_toolkit.testing import FakeEngine
from tests.lm.asking import STORY, ask, needs_torch, settled

Make = Callable[..., TextEngine]


def answer(request: GenerationRequest) -> str:
    if request.grammar or request.label_scores:
        return "yes"
    return " ".join(f"wave{number}," for number in range(1000))


@pytest.fixture(scope="module", params=["fake", "real", "torch"])
def shared(request: pytest.FixtureRequest) -> Iterator[TextEngine]:
    if request.param == "real":
        yield request.getfixturevalue("engine")
        return
    if request.param == "fake":
        engine: TextEngine = FakeEngine(answer, seconds_per_token=0.002)
    else:
        engine = torch_engine(request.getfixturevalue("model_home"))
        engine.submit(ask(max_tokens=1)).result(120)  # loading is not what the deadlines here are about
    yield engine
    engine.close()


def torch_engine(home: Path, **limits: Any) -> TextEngine:
    """The embedded model on torch, or a skip that says why not."""
    needs_torch()
    from dspy_toolkit.lm.models.weights import find_weights
    from dspy_toolkit.lm.torch.engine import TorchEngine

    return TorchEngine(find_weights("mlx/smollm2-135m", home), LMSettings(lease="share", **limits), device="cpu")


@pytest.fixture(params=["fake", "real", "torch"])
def make(request: pytest.FixtureRequest, closing: Callable[[TextEngine], TextEngine]) -> Make:
    """A fresh engine that runs one request at a time, with limits of its own."""

    def make(**limits: Any) -> TextEngine:
        if request.param == "fake":
            return closing(FakeEngine(answer, seconds_per_token=0.05, **limits))
        home: Path = request.getfixturevalue("model_home")
        if request.param == "torch":
            return closing(torch_engine(home, **limits))
        from dspy_toolkit.lm.engine.engine import Engine
        from dspy_toolkit.lm.models.weights import find_weights

        settings = LMSettings(batch_size=1, lease="share", **limits)
        return closing(Engine(find_weights("mlx/smollm2-135m", home), settings))

    return make


def test_reply(shared: TextEngine) -> None:
    request = ask(max_tokens=12)
    reply = shared.submit(request).result(60)
    assert reply.text
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 12)
    assert reply.prompt_tokens == shared.count_tokens(request.messages) > 8
    assert reply.seconds >= reply.queue_seconds >= 0
    assert shared.count_tokens(ask(f"{STORY} {STORY}").messages) > reply.prompt_tokens


def test_pieces_make_the_reply(shared: TextEngine) -> None:
    pending = shared.submit(ask(max_tokens=12))
    pieces = list(pending)
    assert len(pieces) > 6
    assert "".join(pieces) == pending.result().text
    assert list(pending) == []


def test_pieces_on_an_event_loop(shared: TextEngine) -> None:
    async def read() -> None:
        pending = shared.submit(ask(max_tokens=12))
        pieces = [piece async for piece in pending]
        assert len(pieces) > 6
        assert "".join(pieces) == pending.result().text
        assert [piece async for piece in pending] == []

    asyncio.run(read())


def test_stop_strings_end_the_reply_before_them(shared: TextEngine) -> None:
    whole = shared.submit(ask(max_tokens=16)).result(60).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    pending = shared.submit(ask(max_tokens=16, stop=("never said", stop)))
    pieces = "".join(pending)
    assert pending.result().text == pieces == whole[: whole.index(stop)]
    assert pending.result().finish_reason == "stop"


def test_stop_string_that_only_begins(shared: TextEngine) -> None:
    whole = shared.submit(ask(max_tokens=8)).result(60).text
    pending = shared.submit(ask(max_tokens=8, stop=(whole[-3:] + "NEVER",)))
    assert "".join(pending) == pending.result().text == whole


def test_grammar(shared: TextEngine) -> None:
    reply = shared.submit(ask("Is water wet?", grammar='start: "yes" | "no"')).result(60)
    assert reply.text in ("yes", "no")
    assert reply.finish_reason == "stop"


def test_labels(shared: TextEngine) -> None:
    labels = ("no", "yes", "yes it is", "12")
    scores = {"prefix": "Answer: ", "labels": labels, "suffix": "."}
    pending = shared.submit(ask("Is water wet?", label_scores=scores, max_tokens=1))
    reply = pending.result(60)
    assert reply.label_logprobs is not None
    assert tuple(scored.label for scored in reply.label_logprobs) == labels
    assert all(scored.logprob <= 0 < scored.tokens for scored in reply.label_logprobs)
    assert sum(math.exp(scored.logprob) for scored in reply.label_logprobs) < 1.001
    best = max(reply.label_logprobs, key=lambda scored: scored.logprob)
    assert "".join(pending) == reply.text == f"Answer: {best.label}."
    assert (reply.finish_reason, reply.logprobs) == ("stop", None)
    assert reply.completion_tokens >= best.tokens
    ending = shared.submit(ask("Is water wet?", label_scores={"labels": labels})).result(60)
    assert ending.text in labels
    settled(shared)


def test_cancelling_frees_the_sequence(shared: TextEngine) -> None:
    before = settled(shared)
    pending = shared.submit(ask(max_tokens=500))
    next(iter(pending))
    pending.cancel()
    pending.cancel()
    assert pending.cancelled
    with pytest.raises(CancelledError):
        pending.result(1)
    with pytest.raises(CancelledError):
        list(pending)
    after = settled(shared, seconds=5)
    assert after.cancelled == before.cancelled + 1
    assert shared.submit(ask(max_tokens=2)).result(60).text


def test_deadline(shared: TextEngine) -> None:
    before = settled(shared)
    pending = shared.submit(ask(max_tokens=500, deadline_seconds=0.2))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        pending.result(60)
    assert settled(shared).failed == before.failed + 1


def test_prompt_longer_than_the_context(shared: TextEngine) -> None:
    request = ask("word " * 9000, max_tokens=100)
    tokens = shared.count_tokens(request.messages)
    with pytest.raises(RequestRefused, match=rf"{tokens} tokens.* 100, .*8192"):
        shared.submit(request)
    with pytest.raises(RequestRefused, match="8192"):
        shared.submit(ask(max_tokens=8190))


def test_broken_grammar(shared: TextEngine) -> None:
    with pytest.raises(RequestRefused, match="The grammar cannot be compiled"):
        shared.submit(ask(grammar="start: (("))


def test_many_threads(shared: TextEngine) -> None:
    before = settled(shared)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda n: shared.submit(ask(f"Say {n}.", max_tokens=3)).result(120), range(32)))
    assert all(reply.completion_tokens <= 3 for reply in replies)
    after = settled(shared)
    assert after.finished == before.finished + 32
    assert after.decoded_tokens + after.forced_tokens > before.decoded_tokens + before.forced_tokens


def test_full_queue(make: Make) -> None:
    engine = make(queue_size=2)
    first = engine.submit(ask(max_tokens=400))
    next(iter(first))  # it runs, so the queue is empty
    waiting = [engine.submit(ask(max_tokens=400)) for _ in range(2)]
    with pytest.raises(EngineBusy, match="2 requests wait"):
        engine.submit(ask())
    assert EngineBusy.retryable
    for pending in (first, *waiting):
        pending.cancel()
    assert settled(engine).cancelled == 3
    assert engine.submit(ask(max_tokens=2)).result(60).text


def test_closing(make: Make) -> None:
    engine = make()
    sent = [engine.submit(ask(max_tokens=400)) for _ in range(3)]
    next(iter(sent[0]))
    engine.close()
    for pending in sent:
        with pytest.raises(EngineFailed, match="closed"):
            pending.result(1)
    engine.close()
    assert engine.closed
    with pytest.raises(EngineFailed, match="Connect again"):
        engine.submit(ask())
    assert settled(engine).failed == 3


def test_engine_wide_deadline(make: Make) -> None:
    engine = make(timeout=0.3)
    with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
        engine.submit(ask(max_tokens=400, deadline_seconds=60)).result(60)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature.*-1"),
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"top_p": 0}, "top_p"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"stop": 5}, "stop"),
        ({"magic": True}, "magic"),
    ],
)
def test_bad_request(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestRefused, match=told) as caught:
        make_request(**{"messages": [{"role": "user", "content": "x"}], **fields})
    assert "\n" not in str(caught.value)
    assert not caught.value.retryable
