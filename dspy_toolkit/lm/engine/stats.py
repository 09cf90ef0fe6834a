"""The engines' numbers for Prometheus.

`EngineCollector` reads, at each scrape, the counters of the engines that this process serves; register it where the
process has a registry, or take the text from `exposition`. `observe` is called by an engine for each finished reply and
fills the histograms; it imports nothing and costs a few microseconds.

Names begin with `dspy_toolkit_lm_` and end in their unit (`_seconds`, `_bytes`, `_tokens`) and, for what only grows, in
`_total`. The label `model` is the engine's name with its weights' hash. Ratios are since the engine was made; for those of
a stretch of time divide the rates of the counters.

Not covered: an HTTP endpoint (the process that serves has one), models that LiteLLM reaches elsewhere, several processes.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.lm.litellm import provider
from dspy_toolkit.lm.protocol import EngineStats, Reply, TextEngine

if TYPE_CHECKING:
    from prometheus_client import Metric

PREFIX = "dspy_toolkit_lm_"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds in seconds; the last is the deadline's default."""

PARTS = {
    "queue_seconds": "From submission to admission, of finished requests.",
    "prefill_seconds": "From admission to the first token, of finished requests.",
    "decode_seconds": "From the first token to the last, of finished requests.",
    "request_seconds": "From submission to the end, of finished requests.",
}
OUTCOMES = ("finished", "failed", "cancelled")
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prompt_tokens": ("Tokens of all admitted prompts.", lambda s: s.prompt_tokens),
    "reused_tokens": ("Prompt tokens that came from a shared prefix.", lambda s: s.reused_tokens),
    "prefill_tokens": ("Prompt tokens that the model read, padding included.", lambda s: s.computed_tokens),
    "padding_tokens": ("Padding among the prefill tokens.", lambda s: s.padding_tokens),
    "decode_tokens": ("Reply tokens that the model decoded.", lambda s: s.decoded_tokens),
    "forced_tokens": ("Reply tokens that a grammar left no choice about.", lambda s: s.forced_tokens),
    "prefix_hits": ("Admitted prompts that began with a kept or shared prefix.", lambda s: s.prefix_hits),
    "steps": ("Decoding steps.", lambda s: s.steps),
    "step_rows": ("Rows of all decoding steps together.", lambda s: s.batched_rows),
    "step_seconds": ("Time of all decoding steps together.", lambda s: s.step_seconds),
    "model_seconds": ("Time of the decoding steps that the model itself took.", lambda s: s.model_seconds),
    "prefill_model_seconds": ("Time of reading prompts and prefixes.", lambda s: s.prefill_model_seconds),
}
GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "queued_requests": ("Requests that wait for admission.", lambda s: s.queued),
    "active_rows": ("Requests that are being generated.", lambda s: s.active),
    "step_rows_mean": ("Mean rows of a decoding step.", lambda s: s.batched_rows / s.steps if s.steps else 0.0),
    "prefix_hit_ratio": (
        "Share of the prompt tokens that came from a shared prefix.",
        lambda s: s.reused_tokens / s.prompt_tokens if s.prompt_tokens else 0.0,
    ),
    "kv_cache_bytes": ("KV cache of the running rows.", lambda s: s.cache_bytes),
    "prefix_cache_bytes": ("KV cache kept for shared prefixes.", lambda s: s.prefix_bytes),
}
MEMORY = {
    "mlx_active_bytes": ("Memory that MLX uses in this process.", "get_active_memory"),
    "mlx_peak_bytes": ("The most that it has used.", "get_peak_memory"),
    "mlx_cache_bytes": ("Freed buffers that it keeps for reuse.", "get_cache_memory"),
}


class _Histogram:
    """Counts of durations by BUCKETS, of one part of one model's requests."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, requests up to it), as Prometheus takes them."""
        found, below = [], 0
        for bound, count in zip((*(str(bound) for bound in BUCKETS), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, below))
        return found


_lock = threading.Lock()
_histograms: dict[str, dict[str, _Histogram]] = {}
"""By part, then by model. Kept when an engine is closed: a counter that vanishes and comes back is a reset to Prometheus."""


def observe(model: str, reply: Reply) -> None:
    """Count the durations of a finished reply. Safe from any thread.

    Args:
        model: the engine's name.
        reply: as its caller gets it.
    """
    parts = (reply.queue_seconds, reply.prefill_seconds, reply.decode_seconds, reply.seconds)
    with _lock:
        for name, seconds in zip(PARTS, parts, strict=True):
            _histograms.setdefault(name, {}).setdefault(model, _Histogram()).add(seconds)


class EngineCollector:
    """A collector for `prometheus_client`: `REGISTRY.register(EngineCollector())`."""

    def __init__(self, engines: Callable[[], Mapping[str, TextEngine]] | None = None) -> None:
        """Args: engines: those to report by name; by default those that this process serves at the time of the scrape."""
        self._engines = engines or (provider.served)

    def describe(self) -> list[Metric]:
        """Nothing: registering collects nothing yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        seen = {name: engine.stats() for name, engine in self._engines().items()}
        requests = CounterMetricFamily(f"{PREFIX}requests", "Requests that are over.", labels=["model", "outcome"])
        for model, stats in seen.items():
            for outcome in OUTCOMES:
                requests.add_metric([model, outcome], getattr(stats, outcome))
        yield requests
        for name, (about, value) in COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}{name}", about, labels=["model"])
            for model, stats in seen.items():
                counter.add_metric([model], value(stats))
            yield counter
        for name, (about, value) in GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", about, labels=["model"])
            for model, stats in seen.items():
                gauge.add_metric([model], value(stats))
            yield gauge
        fallbacks = CounterMetricFamily(
            f"{PREFIX}fallbacks",
            "Requests that moved from one who could not answer to the next.",
            labels=["from", "to"],
        )
        for names, count in provider.moves().items():
            fallbacks.add_metric(names, count)
        yield fallbacks
        # Not imported for this: a process that has no engine of MLX has no numbers of it.
        mx: Any = sys.modules.get("mlx.core")
        for name, (about, function) in MEMORY.items() if mx is not None else ():
            yield GaugeMetricFamily(f"{PREFIX}{name}", about, value=getattr(mx, function)())
        with _lock:
            durations = {
                (name, model): (histogram.cumulative(), histogram.total)
                for name, by_model in _histograms.items()
                for model, histogram in by_model.items()
            }
        for name, about in PARTS.items():
            family = HistogramMetricFamily(f"{PREFIX}{name}", about, labels=["model"])
            for (part, model), (buckets, total) in durations.items():
                if part == name:
                    family.add_metric([model], buckets=buckets, sum_value=total)
            yield family


def exposition() -> bytes:
    """The numbers of this process's engines in Prometheus' text format (UTF-8)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector())  # pyright: ignore[reportArgumentType]  (a collector by its methods)
    return generate_latest(registry)
