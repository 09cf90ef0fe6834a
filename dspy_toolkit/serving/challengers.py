"""A version beside the champion: both answer a share of the requests, and labels that arrive later say who was better.

Of each such request both predictions are remembered, as the answers for feedback are. When feedback gives its labels, the
project's metric scores both, and one line is added to `home/serving/pairs/NAME.jsonl`. `verdict` is the gate's on the pairs of
the two versions that stand against each other now.

The verdict is as of one look. Whoever looks every hour and acts on the first good one is wrong more often than it says: promotion
stays with the sealed test.

Covered: keeping, scoring, the verdict. Not covered: asking the challenger (`service`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.durable import add_line, is_json
from dspy_toolkit.locks import held
from dspy_toolkit.serving.programs import Live

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

REMEMBERED = 10_000
FEWEST = 20
"""Pairs from which on there is a verdict."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one request."""

    name: str
    champion: Live
    challenger: Live
    old: dict[str, Any]
    new: dict[str, Any]


class Challengers:
    """The pairs of one server. Safe from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pairs: OrderedDict[str, Pair] = OrderedDict()
        self._lock = threading.Lock()

    def keep(
        self, request_id: str, name: str, champion: Live, challenger: Live, old: dict[str, Any], new: dict[str, Any]
    ) -> None:
        """Remember both answers to a request."""
        with self._lock:
            self._pairs[request_id] = Pair(name, champion, challenger, old, new)
            while len(self._pairs) > REMEMBERED:
                self._pairs.popitem(last=False)

    def label(self, request_id: str, inputs: dict[str, Any], labels: dict[str, Any]) -> bool:
        """Score both answers to a request by its labels; whether there were two. Takes a thread that may wait.

        Raises:
            StoreError: the pair cannot be written.
        """
        with self._lock:
            pair = self._pairs.pop(request_id, None)
        if pair is None:
            return False
        scores = [_score(pair.champion, inputs, labels, prediction) for prediction in (pair.old, pair.new)]
        line = {
            "request_id": request_id,
            "champion": pair.champion.version,
            "challenger": pair.challenger.version,
            "scores": scores,
        }
        path = self._file(pair.name)
        with held(Path(f"{path}.lock")):
            add_line(path, json.dumps(line).encode() + b"\n")
        return True

    def verdict(self, name: str, champion: Live, challenger: Live) -> dict[str, Any]:
        """What the labelled pairs of two versions show, as JSON. Takes a thread that may wait."""
        path = self._file(name)
        lines = [json.loads(line) for line in path.read_bytes().splitlines() if is_json(line)] if path.exists() else []
        both = (champion.version, challenger.version)
        pairs = [line["scores"] for line in lines if (line["champion"], line["challenger"]) == both]
        said: dict[str, Any] = {
            "champion": champion.version,
            "challenger": challenger.version,
            "pairs": len(pairs),
            "champion_mean": _mean([old for old, _ in pairs]),
            "challenger_mean": _mean([new for _, new in pairs]),
            "outcome": None,
            "reason": f"{len(pairs)} labelled pairs; from {FEWEST} on there is a verdict.",
        }
        if len(pairs) >= FEWEST:
            from dspy_toolkit.gate import decide

            verdict = decide([old for old, _ in pairs], [new for _, new in pairs])
            said |= {"outcome": verdict.outcome, "reason": verdict.reason}
        return said

    def _file(self, name: str) -> Path:
        return self._settings.path("serving", "pairs", f"{name}.jsonl")


def _score(live: Live, inputs: dict[str, Any], labels: dict[str, Any], prediction: dict[str, Any]) -> float:
    import dspy

    from dspy_toolkit.metrics import score

    example = dspy.Example(**inputs, **labels).with_inputs(*inputs)
    with live.connection.context():  # a metric may ask a judge
        return score(live.project.metric, example, dspy.Prediction(**prediction)).value


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
