"""What earlier runs say about the optimizers: pure functions of the runs, independent of their order.

Runs are similar to a new one when they were made with the same models (whatever their weights' hashes): the one that
runs the program, and the one that writes instructions, on which the gains of GEPA and MIPROv2 depend; on scores of the
same kind, from a baseline within BASELINE_RANGE, with a program of one predictor where this one has one. Runs that
repeated a search from the cache count once. There must be LEAST_RUNS of them on two optimizers, or as many in which one
optimizer gained nothing; then the optimizers are ordered by their mean gain on validation, shrunk towards 0 where there
are few runs:

    sum of the gains / (number of runs + SHRINKAGE)

An optimizer that was never tried has 0. Among equal ones the given order decides, except that one which gained nothing
in LEAST_RUNS runs comes last.

Of a race only the winner counts: it gained more than the others on the same rows.

Not covered: what a profile or a budget rules out (`selection` applies that afterwards), and gains on sealed rows, which
are measured against the champion of the day.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.profile import Profile
    from dspy_toolkit.tracking.history import PastRun

LEAST_RUNS = 3
LEAST_OPTIMIZERS = 2
SHRINKAGE = 2
BASELINE_RANGE = 0.2
"""What helps a program that scores 30 % says little about one that scores 80 %."""


class Preference(NamedTuple):
    """Which optimizer to try first."""

    order: tuple[str, ...]
    reason: str
    """One sentence with the numbers; empty when the runs say too little."""


def similar_runs(runs: Iterable[PastRun], profile: Profile, model: str, reflection_model: str) -> tuple[PastRun, ...]:
    """The runs similar to one with this profile and these models: those that scored something, each search once (its first
    run, so that repeating one changes nothing), the earliest first.

    Args:
        runs: in any order.
        model, reflection_model: the task's and the one that writes instructions, with or without their weights' hashes.
    """
    similar = (
        run
        for run in runs
        if run.val_gain is not None
        and run.optimizer != "none"
        and _bare(run.model) == _bare(model)
        and _bare(run.reflection_model) == _bare(reflection_model)
        and run.graded == profile.graded
        # Room for the rounding error of a difference of floats.
        and abs(run.baseline - profile.baseline) <= BASELINE_RANGE + 1e-9
        and (run.predictors > 1) == (profile.predictors > 1)
    )
    return _distinct(similar)


def prefer(order: Sequence[str], runs: Iterable[PastRun]) -> Preference:
    """`order`, sorted by what the similar `runs` gained; unchanged while they say too little.

    Args:
        order: the optimizers' names, the first choice first.
        runs: from `similar_runs`. Those of other optimizers are ignored.
    """
    gains: defaultdict[str, list[float]] = defaultdict(list)
    for run in _distinct(runs):
        if run.winner in order and run.val_gain is not None:
            gains[run.winner].append(run.val_gain)
    count = sum(map(len, gains.values()))
    failed = {name for name, seen in gains.items() if len(seen) >= LEAST_RUNS and max(seen) <= 0}
    if not failed and (count < LEAST_RUNS or len(gains) < LEAST_OPTIMIZERS):
        return Preference(tuple(order), "")

    def rank(name: str) -> tuple[float, bool]:
        seen = gains.get(name, [])
        # fsum is exact, so that the order of the runs does not matter.
        return -math.fsum(seen) / (len(seen) + SHRINKAGE), name in failed

    ordered = tuple(sorted(order, key=rank))
    means = (
        f"{name} {100 * math.fsum(gains[name]) / len(gains[name]):+.1f} in {len(gains[name])}"
        for name in ordered
        if name in gains
    )
    return Preference(ordered, f"Mean gains on validation, in points, of {count} similar runs: {', '.join(means)}.")


def _distinct(runs: Iterable[PastRun]) -> tuple[PastRun, ...]:
    """The first run of each search, the earliest first."""
    first: dict[str, PastRun] = {}
    for run in sorted(runs, key=lambda run: (run.when, run.run_id)):
        first.setdefault(run.search, run)
    return tuple(first.values())


def _bare(model: str) -> str:
    """A model's name without the hash of its weights."""
    name, at, _ = model.rpartition("@")
    return name if at else model
