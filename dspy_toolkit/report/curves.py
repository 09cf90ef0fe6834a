"""How the search went: the best score so far against LM calls for every generator, and the Pareto front of the candidates.

Not covered: drawing it (`charts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.metrics.pareto import Objectives, pareto_front
from dspy_toolkit.report.words import readable

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.compile import Compiled, Trial


class Point(NamedTuple):
    """One candidate."""

    label: str
    lm_calls: int
    """Logical calls spent until it had been scored."""
    score: float
    """Expected on validation, in [0, 1]: candidates are scored on different numbers of rows."""
    best: float
    """The best of its generator so far, this one included."""


class Curve(NamedTuple):
    """One generator's candidates, in the order of the calls spent."""

    name: str
    points: tuple[Point, ...]


class Candidate(NamedTuple):
    """What one candidate scores, and what a run of it costs."""

    generator: str
    label: str
    score: float
    tokens: float
    """Of one run, on average."""
    seconds: float | None
    """Of one run's uncached calls, on average; None where a cache answered all."""
    on_front: bool


class Front(NamedTuple):
    """Score against cost."""

    candidates: tuple[Candidate, ...]
    """By score, the best first."""
    timed: bool
    """Whether seconds count too: only when they are known for every candidate."""


def curves(compiled: Compiled) -> tuple[Curve, ...]:
    """One curve for every generator that made a candidate, the winner first."""
    made: dict[str, list[Trial]] = {readable(each.name): [] for each in compiled.generators}
    for trial in compiled.trials:
        made.setdefault(readable(trial.generator), []).append(trial)
    return tuple(_curve(name, trials) for name, trials in made.items() if trials)


def baseline(compiled: Compiled) -> float:
    """The baseline's score on the rows that the curves show: the baseline is the first candidate."""
    return compiled.trials[0].expected if compiled.trials else compiled.val_baseline


def front(compiled: Compiled) -> Front | None:
    """Every candidate with its tokens and seconds, marked where on the Pareto front; None when fewer than two have any."""
    known = [trial for trial in compiled.trials if trial.tokens > 0]
    if len(known) < 2:
        return None
    timed = all(trial.seconds > 0 for trial in known)
    best = {
        id(trial)
        for trial in pareto_front(
            known, of=lambda one: Objectives(one.expected, one.tokens, one.seconds if timed else None)
        )
    }
    made = [
        Candidate(
            readable(one.generator), readable(one.label), one.expected, one.tokens, one.seconds or None, id(one) in best
        )
        for one in known
    ]
    return Front(tuple(sorted(made, key=lambda one: (-one.score, one.tokens))), timed)


def _curve(name: str, trials: Sequence[Trial]) -> Curve:
    ordered = sorted(trials, key=lambda trial: trial.lm_calls)
    best = accumulate((trial.expected for trial in ordered), max)
    points = (Point(readable(t.label), t.lm_calls, t.expected, top) for t, top in zip(ordered, best, strict=True))
    return Curve(name, tuple(points))
