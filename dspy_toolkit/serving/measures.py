"""The server's own numbers for Prometheus, beside those of its engines (`dspy_toolkit.lm.exporter`).

Names begin with `dspy_toolkit_serving_`. Labels: `program` is a name that is served, `outcome` is `answered` or a code of
`problems`, so that no text of a request becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "dspy_toolkit_serving_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Measures:
    """Counters of one server, in a registry of its own."""

    def __init__(self, active: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Args: active, waiting: requests that are worked on, and that wait to be."""
        from dspy_toolkit.lm.exporter import EngineCollector

        self.registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}{name}", about, labels, registry=self.registry)

        self.requests = counter("requests", "Requests that are over.", "program", "outcome")
        self.cached = counter("cached", "Answers for which no model was asked.", "program")
        self.tokens = counter("tokens", "Tokens of answers that were not cached.", "program", "kind")
        self.moves = counter(
            "fallbacks", "Options that did not answer, whether or not another one did.", "program", "option", "why"
        )
        self.swaps = counter(
            "swaps", "Champions that took over, were refused, or could not be tried yet.", "program", "outcome"
        )
        self.members = counter("member_failures", "Members of ensembles that did not answer.", "program", "member")
        self.feedback = counter("feedback", "Pieces of feedback.", "program")
        self.shadows = counter("shadows", "Requests that a challenger was asked too.", "program", "outcome")
        self.seconds = Histogram(
            f"{PREFIX}seconds", "From a request to its answer.", ["program"], buckets=SECONDS, registry=self.registry
        )
        for name, about, read in (
            ("active_requests", "Requests that are worked on.", active),
            ("waiting_requests", "Requests that wait to be worked on.", waiting),
        ):
            Gauge(f"{PREFIX}{name}", about, registry=self.registry).set_function(read)
        self.registry.register(EngineCollector())  # pyright: ignore[reportArgumentType]  (a collector by its methods)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
