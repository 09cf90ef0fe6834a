"""What the pool knows of a candidate, and of the generator that makes candidates."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BASELINE = "baseline"
"""The label of the program before the search, and the name of what made it."""


class Made(NamedTuple):
    """A candidate as a generator gives it."""

    program: Any
    label: str
    values: tuple[float, ...] = ()
    """Its scores on the first validation rows, where making it has scored it already."""
    tokens: float = 0.0
    """Prompt tokens of one run in that scoring, on average."""
    runs: float = 1.0
    """How many runs of the baseline one of it costs as much as."""


WAIT = None
"""What a generator gives that has no candidate until another one leads."""


@dataclass(eq=False)
class Entry:
    """A candidate in the pool."""

    family: str
    """The name of its generator."""
    label: str
    program: Any
    values: list[float] = field(default_factory=list)
    """Its scores, in [0, 1], on the first rows of the validation sample, which all candidates share."""
    tokens: float = 0.0
    """Prompt tokens of one run, on average."""
    seconds: float = 0.0
    """Latency of one run, on average; 0 where the cache answered."""
    lm_calls: int = 0
    """Logical calls that the search had spent when it was scored first."""
    runs: float = 1.0
    """How many runs of the baseline one of it costs as much as."""
    number: int = 0
    """Its place in the order of making; the baseline has 0."""

    @property
    def rows(self) -> int:
        """On how many rows it was scored."""
        return len(self.values)

    def mean(self, rows: int | None = None) -> float:
        """Its mean score, on the first `rows` rows or on all that it has seen."""
        seen = self.values[:rows]
        return sum(seen) / len(seen) if seen else 0.0


class Cost(NamedTuple):
    """LM calls that making candidates is expected to take, scoring apart."""

    each: float
    """Of one candidate, on average."""
    step: float
    """Of the next step at most; a step may give several candidates."""


@dataclass(eq=False)
class Family:
    """A generator, and how its candidates fared so far."""

    name: str
    candidates: Generator[Made | None, None, None]
    """Makes the next candidate when asked, or gives WAIT; asks language models meanwhile."""
    cost: Cost
    prior: float = 0.0
    """Gain over the baseline that its candidates are expected to have, in [-1, 1], before any was seen."""
    urgent: int = 0
    """Its first candidates, so many, are asked for before those of all others."""
    last: bool = False
    """Whether it is asked once the others' candidates have climbed, and has `cost.step` calls kept for it."""
    waits: Entry | None = None
    """While this one leads, it has no candidate."""
    made: int = 0
    spent: int = 0
    """LM calls for making them."""
    scoring: int = 0
    """LM calls for scoring them."""
    gains: list[float] = field(default_factory=list)
    """Each candidate's gain over the baseline on the first rows."""
    repeats: int = 0
    """Candidates in a row that were there already."""
    ended: str = ""
    """Why it makes no more; empty while it does."""

    @property
    def each(self) -> float:
        """Calls that a candidate takes to make: what was seen, with the expectation counting as one candidate."""
        return (self.spent + self.cost.each) / (self.made + 1)
