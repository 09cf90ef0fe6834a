"""What earlier runs say about the optimizers: pure functions of the runs, independent of their order.

Runs are similar to a new one when they were made with the same models (whatever their weights' hashes): the one that
runs the program, and the one that writes instructions, on which the gains of GEPA and MIPROv2 depend; on scores of the
same kind, from a baseline within BASELINE_RANGE, with a program of one predictor where this one has one. Runs that
repeated a search from the cache count once, and of a pool only the generator of its best candidate. Where there are LEAST_RUNS
of them, each generator's gains on validation, shrunk towards 0 where there are few,

    sum of the gains / (number of runs + SHRINKAGE)

are compared with the mean over the generators: the difference is what its candidates are expected to gain beyond others', at
most MOST points either way. The pool asks those first, and thinks again when it has seen their scores.

Not covered: what a profile or a budget rules out (`selection`), and gains on sealed rows, which are measured against the
champion of the day.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.profile import Profile
    from dspy_toolkit.tracking.history import PastRun

LEAST_RUNS = 3
MOST = 0.1
NOBODY = ("baseline", "start")
"""Winners that no generator made."""
SHRINKAGE = 2
BASELINE_RANGE = 0.2
"""What helps a program that scores 30 % says little about one that scores 80 %."""


class Experience(NamedTuple):
    """What similar runs say."""

    priors: dict[str, float]
    """Generator → gain in [-MOST, MOST] expected of its candidates beyond that of others."""
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


def experience(runs: Iterable[PastRun]) -> Experience:
    """What the similar `runs` say of each generator; nothing while there are too few.

    Args:
        runs: from `similar_runs`.
    """
    gains: defaultdict[str, list[float]] = defaultdict(list)
    for run in _distinct(runs):
        if run.val_gain is not None and run.winner not in NOBODY:
            gains[run.winner].append(run.val_gain)
    count = sum(map(len, gains.values()))
    if count < LEAST_RUNS:
        return Experience({}, "")
    # fsum is exact, so that the order of the runs does not matter.
    shrunk = {name: math.fsum(seen) / (len(seen) + SHRINKAGE) for name, seen in gains.items()}
    middle = math.fsum(shrunk.values()) / len(shrunk)
    priors = {name: max(-MOST, min(MOST, gain - middle)) for name, gain in sorted(shrunk.items())}
    means = (
        f"{name} {100 * math.fsum(gains[name]) / len(gains[name]):+.1f} in {len(gains[name])}"
        for name in sorted(priors, key=lambda name: (-shrunk[name], name))
    )
    return Experience(priors, f"Mean gains on validation, in points, of {count} similar runs: {', '.join(means)}.")


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
