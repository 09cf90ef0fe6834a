"""How long the parts of finished requests took, as Prometheus' histograms; `dspy_toolkit.lm.exporter` shows them."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

from dspy_toolkit.lm.protocol import Reply

if TYPE_CHECKING:
    from prometheus_client import Histogram

PREFIX = "dspy_toolkit_lm_"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds in seconds; the last is the deadline's default."""
PARTS = {
    "queue_seconds": "From submission to admission, of finished requests.",
    "prefill_seconds": "From admission to the first token, of finished requests.",
    "decode_seconds": "From the first token to the last, of finished requests.",
    "request_seconds": "From submission to the end, of finished requests.",
}


_lock = threading.Lock()


@cache
def histograms() -> dict[str, Histogram]:
    """Part of a request → its histogram in seconds, with the label `model`.

    Kept when an engine is closed: a counter that vanishes and comes back is a reset to Prometheus.
    """
    from prometheus_client import Histogram

    return {
        name: Histogram(PREFIX + name, about, ["model"], registry=None, buckets=BUCKETS)
        for name, about in PARTS.items()
    }


def observe(model: str, reply: Reply) -> None:
    """Count the durations of a finished reply. Safe from any thread.

    Args:
        model: the engine's name.
        reply: as its caller gets it.
    """
    with _lock:  # two first calls at once would make two sets, and one of them would be lost
        found = histograms()
    parts = (reply.queue_seconds, reply.prefill_seconds, reply.decode_seconds, reply.seconds)
    for histogram, seconds in zip(found.values(), parts, strict=True):
        histogram.labels(model).observe(seconds)
