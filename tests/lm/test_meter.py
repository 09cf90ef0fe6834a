"""What is counted, and the limit."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import dspy
import pytest

from dspy_toolkit.errors import BudgetExhausted
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.lm.meter import Meter
from dspy_toolkit.testing import fake_connection, fake_engine


def test_logical_physical_and_tokens(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "one two three", tmp_path)
    first, second = connection.lm.metered(), connection.lm.metered()
    for lm in (first, second):
        for prompt in ("a", "b c"):
            assert lm(prompt) == ["one two three"]
    assert (first.meter.usage.lm_calls, first.meter.usage.physical_calls, first.meter.usage.completion_tokens) == (
        2,
        2,
        6,
    )
    assert (second.meter.usage.lm_calls, second.meter.usage.physical_calls, second.meter.usage.completion_tokens) == (
        2,
        0,
        0,
    )
    # A cached reply's prompt costs what it cost the first time.
    assert first.meter.usage.prompt_tokens == second.meter.usage.prompt_tokens == 4 + 5
    assert connection.lm.meter.usage.lm_calls == 0
    assert len(fake_engine(connection).requests) == 2


def test_prompt_tokens_are_the_models_own_cached_or_not(connection: Connection) -> None:
    program = dspy.Predict("question -> answer: bool")
    meters = []
    for _ in range(2):
        lm = connection.lm.metered()
        with connection.context(lm):
            program(question="Is the meter right?")
        meters.append(lm.meter)
    uncached, cached = meters
    assert (uncached.usage.physical_calls, cached.usage.physical_calls) == (1, 0)
    assert uncached.usage.prompt_tokens == cached.usage.prompt_tokens > 50
    assert uncached.usage.completion_tokens > 0


def test_copies_share_the_meter(tmp_path: Path) -> None:
    lm = fake_connection(lambda request: "x", tmp_path).lm.metered(5)
    lm.copy(temperature=1.0)("a")
    lm("b")
    assert lm.meter.usage.lm_calls == 2


def test_the_limit_stops_cached_calls_too(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "[[ ## y ## ]]\n1\n\n[[ ## completed ## ]]", tmp_path)
    program = dspy.Predict("x -> y: int")
    lm = connection.lm.metered(2)
    with connection.context(lm):
        for _ in range(2):
            assert program(x="same").y == 1
        with pytest.raises(Exception, match="budget of 2 LM calls is spent") as caught:
            program(x="same")
        assert isinstance(root_error(caught.value), BudgetExhausted)
        with pytest.raises(BudgetExhausted):
            asyncio.run(lm.acall("same"))
    assert (lm.meter.usage.lm_calls, lm.meter.usage.physical_calls, lm.meter.parse_retries) == (2, 1, 0)


def test_the_limit_holds_over_many_threads(tmp_path: Path) -> None:
    lm = fake_connection(lambda request: "x", tmp_path).lm.metered(20)

    def call(number: int) -> bool:
        try:
            return bool(lm(f"prompt {number}"))
        except BudgetExhausted:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(call, range(60))) == 20
    assert (lm.meter.usage.lm_calls, lm.meter.usage.physical_calls) == (20, 20)


@pytest.mark.filterwarnings("ignore:LM response was truncated")
def test_truncated_replies_are_counted(tmp_path: Path) -> None:
    lm = fake_connection(lambda request: "one two three four", tmp_path).lm.metered()
    assert lm("a", max_tokens=2) == ["one two"]
    assert lm("b", max_tokens=10) == ["one two three four"]
    assert lm.meter.truncated == 1


def test_another_rollout_is_another_seed(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: f"seed {request.seed}", tmp_path)
    lm = connection.lm.copy(temperature=1.0)
    assert [lm("a", rollout_id=n) for n in (1, 2, 1)] == [["seed 1"], ["seed 2"], ["seed 1"]]
    assert lm.copy(rollout_id=9)("a") == ["seed 9"]
    assert lm("a", rollout_id=3, seed=77) == ["seed 77"]
    assert lm.meter.usage.physical_calls == 4


def test_several_choices_are_one_call(tmp_path: Path) -> None:
    lm = fake_connection(lambda request: "x y", tmp_path).lm.metered()
    assert lm("a", n=3, temperature=1.0) == ["x y"] * 3
    assert (lm.meter.usage.lm_calls, lm.meter.usage.physical_calls, lm.meter.usage.completion_tokens) == (1, 1, 6)


def test_meter_without_a_model() -> None:
    meter = Meter(limit=0)
    with pytest.raises(BudgetExhausted):
        meter.charge()
    meter.record(cached=True, prompt_tokens=3, completion_tokens=0, truncated=True)
    assert (meter.usage.lm_calls, meter.usage.physical_calls, meter.usage.prompt_tokens, meter.truncated) == (
        0,
        0,
        3,
        1,
    )


def test_dollars_are_never_exceeded_by_calls_at_once() -> None:
    """Each call costs up to 3 cents, and nobody knows before it is over."""
    meter, prices, lock, let_in = Meter(usd=0.5), iter([0.03, 0.01, 0.02] * 100), Lock(), 0

    def call(_: int) -> None:
        nonlocal let_in
        try:
            meter.charge()
        except BudgetExhausted:
            return
        with lock:
            let_in += 1
            price = next(prices)
        time.sleep(0.001)
        meter.record(cached=False, prompt_tokens=1, completion_tokens=1, truncated=False, usd=price)
        meter.settle()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(150)))
    for number in range(50):  # what was set aside for calls at once is free again
        call(number)
    assert 0.44 < meter.usage.usd <= 0.5
    assert let_in == meter.usage.lm_calls == 200 - meter.refused


def test_a_cached_reply_costs_nothing_and_frees_what_was_set_aside() -> None:
    meter = Meter(usd=0.01)
    for _ in range(50):
        meter.charge()
        meter.record(cached=True, prompt_tokens=1, completion_tokens=0, truncated=False, usd=5.0)
        meter.settle()
    assert meter.usage.usd == 0
    assert meter.usage.lm_calls == 50


def test_a_part_counts_on_the_whole_and_is_turned_away_by_its_limit() -> None:
    whole = Meter(2)
    part = Meter(whole=whole)
    part.charge()
    whole.charge()
    with pytest.raises(BudgetExhausted, match="budget of 2 LM calls"):
        part.charge()
    assert (part.usage.lm_calls, whole.usage.lm_calls, part.refused, whole.refused) == (1, 2, 1, 1)
