"""The numbers that Prometheus gets are those of the engines, under names that it understands."""

from __future__ import annotations

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dspy_toolkit.lm.engine.stats import BUCKETS, PREFIX, observe
from dspy_toolkit.lm.exporter import OUTCOMES, EngineCollector, exposition
from dspy_toolkit.lm.litellm.provider import serve, withdraw
from dspy_toolkit.lm.protocol import EngineStats, Reply
from dspy_toolkit.testing import FakeEngine
from tests.lm.asking import ask, settled

UNITS = (
    "_seconds",
    "_bytes",
    "_tokens",
    "_requests",
    "_rows",
    "_mean",
    "_ratio",
    "_total",
    "_bucket",
    "_sum",
    "_count",
)


class Still:
    """An engine with counters and nothing else."""

    def __init__(self, **counts: Any) -> None:
        self.now = EngineStats(**counts)

    def stats(self) -> EngineStats:
        return self.now


def reply(**seconds: float) -> Reply:
    return Reply(text="", finish_reason="stop", prompt_tokens=1, completion_tokens=1, **seconds)


def scrape(model: str, text: bytes | None = None) -> dict[str, float]:
    """The numbers of one model, by name without the common beginning; outcomes and bounds behind a colon."""
    found = {}
    for family in text_string_to_metric_families((text or exposition()).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model", model) == model:
                found[":".join([sample.name.removeprefix(PREFIX), *labels.values()])] = sample.value
    return found


def collected(**engines: Still) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(EngineCollector(lambda: engines))  # type: ignore[arg-type]
    return {
        ":".join([sample.name.removeprefix(PREFIX), *sample.labels.values()]): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_a_served_engine_is_reported_with_its_counters() -> None:
    fake = FakeEngine(lambda request: "one two three", seconds_per_token=0.05)
    assert "requests_total:finished" not in scrape(fake.model)
    serve(fake)
    try:
        refused = fake.submit(ask("a", grammar='start: "no"'))
        fake.submit(ask("b")).result(10)
        assert refused.future.exception(10) is not None
        settled(fake)
        seen = scrape(fake.model)
        assert [seen[f"requests_total:{outcome}"] for outcome in OUTCOMES] == [1, 1, 0]
        assert (seen["decode_tokens_total"], seen["queued_requests"], seen["active_rows"]) == (3, 0, 0)
        for _ in range(3):
            fake.submit(ask("c"))
        seen = scrape(fake.model)
        assert seen["active_rows"] + seen["queued_requests"] == 3
        settled(fake)
        assert scrape(fake.model)["requests_total:finished"] == 4
    finally:
        withdraw(fake.model)
        fake.close()
    assert "requests_total:finished" not in scrape(fake.model)


def test_every_counter_of_an_engine_is_reported() -> None:
    """A number that the engine counts and nobody can see is of no use: each field changes something."""
    before = collected(m=Still())
    assert not any(value for key, value in before.items() if ":m:" in f"{key}:")
    for name, field in EngineStats.model_fields.items():
        if name == "requests":  # those that are over, waiting and running together
            continue
        value = 3.5 if field.annotation is float else 3
        after = collected(m=Still(**{name: value, **({"steps": 1} if name == "batched_rows" else {})}))
        assert value in [after[key] for key in after if after[key] != before[key]], name


def test_ratios() -> None:
    seen = collected(m=Still(prompt_tokens=400, reused_tokens=300, steps=10, batched_rows=45))
    assert (seen["prefix_hit_ratio:m"], seen["step_rows_mean:m"]) == (0.75, 4.5)


def test_names_follow_the_conventions() -> None:
    for family in EngineCollector(lambda: {"m": Still()}).collect():  # type: ignore[dict-item]
        assert family.name.startswith(PREFIX) and family.documentation.endswith(".")
        assert (family.name + ("_total" if family.type == "counter" else "")).endswith(UNITS), family.name
        for sample in family.samples:
            assert sample.name.endswith(UNITS), sample.name


def test_durations_fall_into_buckets() -> None:
    model = f"mlx/test@{uuid.uuid4().hex[:8]}"
    observe(model, reply(queue_seconds=0.0, prefill_seconds=0.05, decode_seconds=0.051, seconds=5000.0))
    observe(model, reply(queue_seconds=0.3, prefill_seconds=0.01, decode_seconds=2.0, seconds=2.3))
    seen = scrape(model)
    assert seen["queue_seconds_bucket:0.005"] == 1
    assert seen["prefill_seconds_bucket:0.05"] == 2  # a bound belongs to its bucket
    assert (seen["decode_seconds_bucket:0.05"], seen["decode_seconds_bucket:0.1"]) == (0, 1)
    assert (seen["request_seconds_bucket:600.0"], seen["request_seconds_bucket:+Inf"]) == (1, 2)
    assert seen["request_seconds_count"] == 2
    assert seen["decode_seconds_sum"] == pytest.approx(2.051)


def test_no_observation_is_lost_between_threads() -> None:
    model = f"mlx/test@{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(16) as pool:
        for _ in range(16):
            pool.submit(lambda: [observe(model, reply(seconds=0.5)) for _ in range(200)])
        for _ in range(20):
            buckets = [value for name, value in scrape(model).items() if name.startswith("request_seconds_bucket")]
            assert buckets == sorted(buckets)
    seen = scrape(model)
    assert seen["request_seconds_count"] == 3200 == seen["request_seconds_bucket:+Inf"]
    assert seen["request_seconds_sum"] == 1600
    assert sum(name.startswith("request_seconds_bucket") for name in seen) == len(BUCKETS) + 1


def test_memory_is_reported_where_mlx_is_loaded() -> None:
    import mlx.core as mx

    seen = scrape("any")
    assert seen["mlx_peak_bytes"] >= 0 and seen["mlx_active_bytes"] == pytest.approx(mx.get_active_memory(), abs=2**30)


def test_observing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom dspy_toolkit.lm.protocol import Reply\nfrom dspy_toolkit.lm.engine.stats import observe\n"
        "observe('m', Reply(text='', finish_reason='stop', prompt_tokens=1, completion_tokens=1))\n"
        "print(*{'mlx', 'litellm', 'mlflow', 'dspy'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == []
