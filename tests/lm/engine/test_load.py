"""The engine under load, on a tiny model: every request ends, nothing is left behind, and a bad one harms no other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import DeadlineExceeded, EngineBusy, RequestRefused
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.protocol import make_request
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns

Make = Callable[..., Engine]
SHARED = "You answer questions about harbours. " * 8


@pytest.fixture
def make(tiny: Any, tmp_path: Path, closing: Callable[[Engine], Engine]) -> Make:
    """An engine of a tiny model, with settings of its own."""

    def make(**settings: Any) -> Engine:
        weights = find_weights(f"mlx/{tiny('llama')}", tmp_path)
        return closing(Engine(weights, LMSettings(lease="share", **settings)))

    return make


def active_memory() -> int:
    import mlx.core as mx

    return mx.get_active_memory()


@pytest.mark.soak
def test_two_hundred_requests_that_end_in_every_way_leave_nothing_behind(make: Make) -> None:
    engine = make()
    send(engine, turns("Hello!")).result(60)
    before, loaded = settled(engine), active_memory()
    chance = random.Random(1)
    sent = []
    for number in range(200):
        fields: dict[str, Any] = {"max_tokens": chance.randint(1, 60)}
        if chance.random() < 0.2:
            fields["deadline_seconds"] = chance.choice([0.001, 0.05, 0.2])
        if chance.random() < 0.3:
            fields["grammar"] = chance.choice(['start: "yes" | "no"', "start: /[a-z]{3,40}/"])
        if chance.random() < 0.2:
            fields |= {"temperature": 1.0, "repetition_penalty": 1.2, "logprobs": 2}
        system = SHARED if chance.random() < 0.6 else None
        pending = send(engine, turns("How deep is it? " * chance.randint(1, 12) + str(number), system), **fields)
        sent.append(pending)
        if chance.random() < 0.3:
            chance.choice(sent).cancel()
    ends: Counter[str] = Counter()
    for pending in sent:
        try:
            ends[pending.result(120).finish_reason] += 1
        except (CancelledError, DeadlineExceeded) as error:
            ends[type(error).__name__] += 1
    assert {"length", "CancelledError", "DeadlineExceeded"} <= ends.keys()
    now = settled(engine)
    assert now.requests - before.requests == 200
    assert now.cache_bytes == 0
    # What is left is what is kept for the next prompts, and it is counted.
    assert active_memory() <= loaded + now.prefix_bytes + 2**20


def test_a_thousand_requests_against_a_queue_of_sixty_four(make: Make) -> None:
    engine = make(queue_size=64)

    def ask(number: int) -> str:
        try:
            return send(engine, turns(f"How deep is harbour {number}?", SHARED), max_tokens=4).result(120).finish_reason
        except EngineBusy as error:
            assert "64 requests wait" in str(error)
            return "busy"

    with ThreadPoolExecutor(100) as pool:
        ends = Counter(pool.map(ask, range(1000)))
    assert ends["busy"] > 0
    assert ends.keys() <= {"busy", "stop", "length"}
    assert settled(engine).finished == 1000 - ends["busy"]


@pytest.mark.parametrize(
    "hostile",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "word " * 100_000}]},
        {"grammar": "start: ("},
        {"max_tokens": 0},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"temperature": -1},
    ],
)
def test_a_hostile_request_gets_one_clear_error_while_others_go_on(make: Make, hostile: dict[str, Any]) -> None:
    engine = make()
    others = [send(engine, turns(f"How deep is harbour {number}?"), max_tokens=20) for number in range(4)]
    with pytest.raises(RequestRefused) as caught:
        engine.submit(make_request(**{"messages": turns("x"), "max_tokens": 5, **hostile}))
    assert "\n" not in str(caught.value)
    assert all(other.result(60).completion_tokens for other in others)
