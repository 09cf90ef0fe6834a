"""Measuring, on sizes that say nothing about speed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput
from benchmarks.throughput import burst, made_up_texts, measure_engine, measure_rates, step_figures
from dspy_toolkit.errors import EngineFailed, ModelError
from dspy_toolkit.lm.protocol import EngineStats
from dspy_toolkit.testing import fake_connection, fake_engine


def test_a_burst_keeps_the_order_and_uses_all_threads() -> None:
    together = threading.Barrier(4)

    def call(item: int) -> int:
        together.wait(10)
        return item * item

    done = burst(call, range(8), threads=4)
    assert done.results == [item * item for item in range(8)]
    assert len(done.latencies) == 8
    assert done.rate == 8 / done.seconds


def test_what_a_call_raises_ends_the_burst() -> None:
    with pytest.raises(ZeroDivisionError):
        burst(lambda item: 1 // item, [1, 0, 1], threads=2)


def test_rates_of_the_hardware_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "COPIED", 2**20)
    monkeypatch.setattr(throughput, "CPU_SIDE", 64)
    rates = measure_rates()
    assert rates.flops > 0
    assert rates.bytes > 0


def test_texts_are_different_and_the_same_every_time() -> None:
    texts = made_up_texts(200)
    assert len(set(texts)) == 200
    assert texts[:20] == made_up_texts(20)


def test_an_engine_is_measured_without_its_cache(tmp_path: Path) -> None:
    def answer(request: Any) -> dict[str, str]:
        return {"drawer": "timber"} if "drawer" in request.messages[0].content else {"answer": "A board."}

    connection = fake_connection(answer, tmp_path)
    seen: list[tuple[int, int, str]] = []
    try:
        for _ in range(2):
            figures = measure_engine(connection, requests=3, threads=2, progress=lambda *told: seen.append(told))
            assert [figure.name for figure in figures] == ["cold_prefix", "warm_prefix", "free_text"]
            assert all(figure.value > 0 for figure in figures)
        requests = fake_engine(connection).requests
        # One to load, two bursts, free text: twice, since no reply comes from a cache.
        assert len(requests) == 2 * (1 + 3 + 3 + 2)
        assert len({request.messages[0].content for request in requests}) == 2 * 3, "prefixes that no other run has"
    finally:
        fake_engine(connection).close()
    assert seen[-1][:2] == (3, 3)


def test_a_request_that_fails_is_raised(tmp_path: Path) -> None:
    connection = fake_connection([EngineFailed("The engine failed. Try again.")], tmp_path)
    try:
        with pytest.raises(Exception, match="The engine failed") as raised:
            measure_engine(connection, requests=1, threads=1)
        from dspy_toolkit.lm import root_error

        assert isinstance(root_error(raised.value), EngineFailed)
    finally:
        fake_engine(connection).close()


def test_a_model_elsewhere_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from dspy_toolkit.lm.meter import MeteredLM

    connection = fake_connection([], tmp_path)
    try:
        with pytest.raises(ModelError, match="openai/x is not run by an engine of this machine"):
            measure_engine(replace(connection, lm=MeteredLM("openai/x", api_key="none")))
    finally:
        fake_engine(connection).close()


def test_the_models_share_and_the_engines_own_time() -> None:
    before = EngineStats(steps=10, step_seconds=1.0, model_seconds=0.5)
    after = EngineStats(steps=30, step_seconds=3.0, model_seconds=2.3)
    share, own = step_figures(before, after, 3.0)
    assert share.value == pytest.approx(60)
    assert own.value == pytest.approx(10)
    assert own.better == "lower"
    assert step_figures(EngineStats(), EngineStats(steps=3), 1.0) == []
