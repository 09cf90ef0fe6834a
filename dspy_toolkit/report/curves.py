"""How the search went: the best score so far against LM calls for every arm, and the Pareto front of the candidates.

Not covered: drawing it (`charts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.metrics.pareto import Objectives, pareto_front
from dspy_toolkit.optimizers.search.search import BASELINE
from dspy_toolkit.report.words import readable

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.compile import Compiled
    from dspy_toolkit.optimizers.search.search import Trial


class Point(NamedTuple):
    """One candidate."""

    label: str
    lm_calls: int
    """Logical calls spent until it had been scored."""
    score: float
    """Mean on validation, in [0, 1]."""
    best: float
    """The best of its arm so far, this one included."""


class Curve(NamedTuple):
    """One arm's candidates, in the order of the calls spent."""

    name: str
    points: tuple[Point, ...]


class Candidate(NamedTuple):
    """What one candidate scores, and what a run of it costs."""

    arm: str
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
    """One curve for every arm that scored a candidate; the arms of a race in its order."""
    arms: dict[str, list[Trial]] = {readable(arm.name): [] for arm in compiled.arms}
    for trial in compiled.trials:
        arms.setdefault(_arm(trial, compiled), []).append(trial)
    return tuple(_curve(name, trials) for name, trials in arms.items() if trials)


def baseline(compiled: Compiled) -> float:
    """The baseline's score on the rows that the curves show: the baseline is the first candidate."""
    return compiled.trials[0].val_mean if compiled.trials else compiled.val_baseline


def front(compiled: Compiled) -> Front | None:
    """Every candidate with its tokens and seconds, marked where on the Pareto front; None when fewer than two have any.

    The baseline is one candidate, however many arms began with it.
    """
    known = [trial for trial in compiled.trials if trial.tokens > 0]
    first = next((trial for trial in known if trial.label == BASELINE), None)
    known = [trial for trial in known if trial.label != BASELINE or trial is first]
    if len(known) < 2:
        return None
    timed = all(trial.seconds > 0 for trial in known)
    best = {
        id(trial)
        for trial in pareto_front(
            known, of=lambda one: Objectives(one.val_mean, one.tokens, one.seconds if timed else None)
        )
    }
    made = [
        Candidate(
            _arm(one, compiled), readable(one.label), one.val_mean, one.tokens, one.seconds or None, id(one) in best
        )
        for one in known
    ]
    return Front(tuple(sorted(made, key=lambda one: (-one.score, one.tokens))), timed)


def _arm(trial: Trial, compiled: Compiled) -> str:
    return readable(trial.arm) if trial.arm else BASELINE if compiled.arms else compiled.optimizer


def _curve(name: str, trials: Sequence[Trial]) -> Curve:
    ordered = sorted(trials, key=lambda trial: trial.lm_calls)
    best = accumulate((trial.val_mean for trial in ordered), max)
    points = (Point(readable(t.label), t.lm_calls, t.val_mean, top) for t, top in zip(ordered, best, strict=True))
    return Curve(name, tuple(points))
