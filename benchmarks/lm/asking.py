"""What every measurement has in common: what a worker was told, the rows to ask about, and asking one.

A request that fails is told apart from one whose answer cannot be read, and ends nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dspy

from benchmarks.lm.floor import Shape
from benchmarks.lm.peers import Place, System
from benchmarks.lm.workloads import FEW, Way, Workload, make_program, messages_of, read_reply, signature_of
from benchmarks.throughput import Rates


class Found(NamedTuple):
    """One number. `measure` says of what: rate, right, valid, tokens, seconds and others."""

    measure: str
    value: float | None
    """None where there is none; the note says why."""
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What a worker was told."""

    name: str
    """The system's."""
    place: Place
    rates: Rates
    shape: Shape | None
    train: list[dict[str, str]]
    val: list[dict[str, str]]
    demos: list[dict[str, str]] = field(default_factory=list)
    """Enough for the few-shot prefix."""
    scale: float = 1.0
    """Of the numbers of requests."""

    def requests(self, workload: Workload) -> int:
        """How many this system gets."""
        # A system that keeps no prefix and answers one request after another is as fast on the first as on the last.
        return max(round((FEW if self.name == "generate" else workload.requests) * self.scale), 1)


class Outcome(NamedTuple):
    """What became of one request."""

    fields: dict[str, Any] | None
    failure: str | None
    text: str = ""
    tokens: int = 0
    """Of the reply, where it was asked for natively."""


def rows_for(workload: Workload, setting: Setting, count: int) -> list[dict[str, str]]:
    """`count` rows to ask about, none of them a demonstration. The same for every system, and the first ones for few."""
    taken = {demo["request"] for demo in setting.demos}
    rows = [row for row in (*setting.val, *setting.train) if row["request"] not in taken]
    if workload.kind == "configure":
        rows = [row for row in rows if row["project"] == "lora"]
    if len(rows) < count:
        raise ValueError(f"{workload.name} needs {count} rows, and there are {len(rows)}. Lower --scale.")
    return rows[:count]


class Caller:
    """A workload's program, asked one row at a time, from any thread."""

    def __init__(
        self, system: System, workload: Workload, way: Way, salt: str, demos: Sequence[dict[str, str]] = ()
    ) -> None:
        self.program = make_program(workload.kind, salt, demos)
        self.lm, self._adapter = system.lm(workload.max_tokens)
        self._system, self._most = system, workload.max_tokens
        self._ask = self._natively if way == "native" else self._through_dspy

    def __call__(self, row: dict[str, str]) -> Outcome:
        try:
            return self._ask(row)
        except Exception as error:  # isolation boundary: one request of a benchmark
            return Outcome(None, f"{type(error).__name__}: {error}"[:200])

    def _natively(self, row: dict[str, str]) -> Outcome:
        answer = self._system.ask(messages_of(self.program, row["request"]), self._most, signature_of(self.program))
        return Outcome(read_reply(self.program, answer.text), None, *answer)

    def _through_dspy(self, row: dict[str, str]) -> Outcome:
        with dspy.context(lm=self.lm, adapter=self._adapter):
            try:
                return Outcome(dict(self.program(request=row["request"]).items()), None)
            except dspy.utils.exceptions.AdapterParseError:
                return Outcome(None, None)
