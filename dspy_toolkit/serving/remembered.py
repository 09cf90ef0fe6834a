"""The answers that feedback may still refer to, in memory: the last ones, up to a number and a size.

Covered: keeping and finding them. Not covered: keeping them over a restart: feedback on an answer from before it is refused.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dspy_toolkit.serving.schemas import characters

MOST_CHARACTERS = 64_000_000


@dataclass(frozen=True)
class Served:
    """A request that was answered."""

    request_id: str
    owner: str
    """The id of the key that asked."""
    program: str
    version: int | None
    project: str
    inputs: dict[str, Any]
    """Plain JSON."""
    prediction: dict[str, Any]
    cached: bool
    seconds: float
    trace_id: str | None = None


class Remembered:
    """The last answers, by their request's id. Safe from any thread."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[str, tuple[Served, int]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, served: Served) -> None:
        """Remember an answer; the oldest are forgotten for it."""
        if not self._most:
            return
        size = 500 + characters(served.inputs) + characters(served.prediction)
        with self._lock:
            self._kept[served.request_id] = served, size
            self._size += size
            while len(self._kept) > self._most or (self._size > MOST_CHARACTERS and len(self._kept) > 1):
                _, (_, gone) = self._kept.popitem(last=False)
                self._size -= gone

    def find(self, request_id: str, owner: str | None = None) -> Served | None:
        """The answer to a request; None where it is forgotten, or was somebody else's."""
        with self._lock:
            found = self._kept.get(request_id)
        if found is None or (owner is not None and found[0].owner != owner):
            return None
        return found[0]

    def __len__(self) -> int:
        return len(self._kept)
