"""The engines' numbers for Prometheus.

`EngineCollector` reads, at each scrape, the counters of the engines that this process serves; register it where the
process has a registry, or take the text from `exposition`. The histograms are filled by the engines (`engine.stats`).

Names begin with `dspy_toolkit_lm_` and end in their unit (`_seconds`, `_bytes`, `_tokens`) and, for what only grows, in
`_total`. The label `model` is the engine's name with its weights' hash. Ratios are since the engine was made; for those of
a stretch of time divide the rates of the counters.

Not covered: an HTTP endpoint (the process that serves has one), models that LiteLLM reaches elsewhere, several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.lm.engine.stats import PREFIX, histograms
from dspy_toolkit.lm.litellm import provider
from dspy_toolkit.lm.protocol import EngineStats, TextEngine

if TYPE_CHECKING:
    from prometheus_client import Metric

OUTCOMES = ("finished", "failed", "cancelled")
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prompt_tokens": ("Tokens of all admitted prompts.", lambda s: s.prompt_tokens),
    "reused_tokens": ("Prompt tokens that came from a shared prefix.", lambda s: s.reused_tokens),
    "prefill_tokens": ("Prompt tokens that were prefilled, padding included.", lambda s: s.computed_tokens),
    "padding_tokens": ("Padding among the prefill tokens.", lambda s: s.padding_tokens),
    "decode_tokens": ("Reply tokens that the model decoded.", lambda s: s.decoded_tokens),
    "forced_tokens": ("Reply tokens that a grammar left no choice about.", lambda s: s.forced_tokens),
    "scored_tokens": ("Tokens that were computed to score labels, padding included.", lambda s: s.scored_tokens),
    "scoring_seconds": ("Time of scoring labels.", lambda s: s.scoring_seconds),
    "prefix_hits": ("Admitted prompts that began with a kept or shared prefix.", lambda s: s.prefix_hits),
    "steps": ("Decoding steps.", lambda s: s.steps),
    "step_rows": ("Sequences of all decoding steps together.", lambda s: s.batched_rows),
    "step_seconds": ("Time of all decoding steps together.", lambda s: s.step_seconds),
    "model_seconds": ("Time of the decoding steps that the model itself took.", lambda s: s.model_seconds),
    "prefill_model_seconds": ("Time of prefilling prompts and prefixes.", lambda s: s.prefill_model_seconds),
}
GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "queued_requests": ("Requests that wait for admission.", lambda s: s.queued),
    "active_rows": ("Requests that are being answered.", lambda s: s.active),
    "step_rows_mean": ("Mean sequences of a decoding step.", lambda s: s.batched_rows / s.steps if s.steps else 0.0),
    "prefix_hit_ratio": (
        "Share of the prompt tokens that came from a shared prefix.",
        lambda s: s.reused_tokens / s.prompt_tokens if s.prompt_tokens else 0.0,
    ),
    "kv_cache_bytes": ("KV cache of the running sequences.", lambda s: s.cache_bytes),
    "prefix_cache_bytes": ("KV cache kept for shared prefixes.", lambda s: s.prefix_bytes),
}
MEMORY = {
    "mlx_active_bytes": ("Memory that MLX uses in this process.", "get_active_memory"),
    "mlx_peak_bytes": ("The most that it has used.", "get_peak_memory"),
    "mlx_cache_bytes": ("Freed buffers that it keeps for reuse.", "get_cache_memory"),
}


class EngineCollector:
    """A collector for `prometheus_client`: `REGISTRY.register(EngineCollector())`."""

    def __init__(self, engines: Callable[[], Mapping[str, TextEngine]] | None = None) -> None:
        """Args: engines: those to report, by name; by default all that this process serves when it is scraped."""
        self._engines = engines or provider.served

    def describe(self) -> list[Metric]:
        """Nothing: registering collects nothing yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        seen = {name: engine.stats() for name, engine in self._engines().items()}
        requests = CounterMetricFamily(f"{PREFIX}requests", "Requests that are over.", labels=["model", "outcome"])
        for model, stats in seen.items():
            for outcome in OUTCOMES:
                requests.add_metric([model, outcome], getattr(stats, outcome))
        yield requests
        for kind, numbers in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, (about, value) in numbers.items():
                family = kind(f"{PREFIX}{name}", about, labels=["model"])
                for model, stats in seen.items():
                    family.add_metric([model], value(stats))
                yield family
        fallbacks = CounterMetricFamily(
            f"{PREFIX}fallbacks",
            "Requests that moved from a model that could not answer to the next one.",
            labels=["from", "to"],
        )
        for names, count in provider.moves().items():
            fallbacks.add_metric(names, count)
        yield fallbacks
        # Not imported for this: a process without an MLX engine has no such numbers.
        mx: Any = sys.modules.get("mlx.core")
        for name, (about, function) in MEMORY.items() if mx is not None else ():
            yield GaugeMetricFamily(f"{PREFIX}{name}", about, value=getattr(mx, function)())
        for histogram in histograms().values():
            for family in histogram.collect():
                # When each began is nothing that a rate needs.
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


def exposition() -> bytes:
    """The numbers of this process's engines in Prometheus' text format (UTF-8)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector())  # pyright: ignore[reportArgumentType]  (a collector by its methods)
    return generate_latest(registry)
