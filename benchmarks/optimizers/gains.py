"""What each system gained on the sealed rows over all tasks and seeds, with intervals.

The gain of a system on a task under a seed is its sealed mean less the baseline's on the same rows. One that
cannot run there leaves its user with the baseline: it gained 0. One that failed says nothing.

Over tasks and seeds: a hierarchical bootstrap (tasks are drawn with replacement, then for each of them its seeds), so
that an interval is for tasks like these, and not for these alone. Rows are not drawn again: they differ from seed to
seed, and what that does is in the seeds.

Of one task: the mean over its seeds, with the interval of a mean of independent estimates that each have one (MOVER:
Zou and Donner, Statistics in Medicine 27, 2008). It is for the programs that were found.
Of the router it is somewhat too narrow: its rows are the same for every seed, split anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.optimizers.rows import BASELINE, Row, seeds_of, tasks_of, value_of

DRAWS, SEED = 10_000, 0
IMPOSSIBLE, FAILED = "impossible", "failed"
"""What is in place of a gain: the system cannot run on the task, or it ended with an error and may run the next time."""

Gains = dict[str, list[float]]
"""Task → the gain of each seed."""


class Interval(NamedTuple):
    """A mean and its 95 % interval, as shares."""

    mean: float
    low: float
    high: float


def gains_of(rows: Sequence[Row], system: str) -> Gains:
    """The gains of `system`, of the tasks and seeds of `cells_of`."""
    stopped = cells_with(rows, system, IMPOSSIBLE)
    found: Gains = {}
    for task in tasks_of(rows):
        each = [
            0.0 if (task, seed) in stopped else value_of(rows, task, seed, system, "delta")
            for seed in seeds_of(rows, task)
        ]
        if known := [gain for gain in each if gain is not None]:
            found[task] = known
    return found


def cells_of(rows: Sequence[Row], system: str) -> set[tuple[str, int]]:
    """The tasks and seeds on which `system` has a gain."""
    return cells_with(rows, system, "delta") | cells_with(rows, system, IMPOSSIBLE)


def cells_with(rows: Sequence[Row], system: str, measure: str) -> set[tuple[str, int]]:
    """The tasks and seeds on which `system` has a row of that measure; the scripted task is none of them."""
    known = set(tasks_of(rows))
    return {
        (row["task"], row["seed"])
        for row in rows
        if row["system"] == system and row["measure"] == measure and row["task"] in known
    }


def shared(rows: Sequence[Row], systems: Sequence[str]) -> list[Row]:
    """The rows of the tasks and seeds on which all of `systems` have a gain: they are compared on nothing else."""
    both = set.intersection(*(cells_of(rows, system) for system in systems))
    return [row for row in rows if (row["task"], row["seed"]) in both]


def less(ours: Gains, theirs: Gains) -> Gains:
    """The differences of two systems' gains on the same tasks and seeds."""
    return {task: [a - b for a, b in zip(ours[task], theirs[task], strict=True)] for task in ours}


def over_tasks(gains: Gains) -> Interval:
    """The mean over tasks of the means over their seeds, with the bootstrap's percentiles.

    Raises:
        ValueError: there are none.
    """
    import numpy as np

    if not gains:
        raise ValueError("There are no gains to take a mean of.")
    draw = np.random.default_rng(SEED)
    means = np.zeros((DRAWS, len(gains)))
    picked = draw.integers(len(gains), size=means.shape)
    for number, each in enumerate(gains.values()):
        where = picked == number
        seeds = draw.integers(len(each), size=(int(where.sum()), len(each)))
        means[where] = np.asarray(each)[seeds].mean(axis=1)
    low, high = np.percentile(means.mean(axis=1), (2.5, 97.5))
    return Interval(float(np.mean([np.mean(each) for each in gains.values()])), float(low), float(high))


def of_task(rows: Sequence[Row], task: str, system: str) -> Interval | None:
    """The gain on one task over its seeds; None where no seed has one that was tested."""
    found = [
        (delta, low, high)
        for seed in seeds_of(rows, task)
        if (delta := value_of(rows, task, seed, system, "delta")) is not None
        and (low := value_of(rows, task, seed, system, "low")) is not None
        and (high := value_of(rows, task, seed, system, "high")) is not None
    ]
    if not found:
        return None
    n, mean = len(found), sum(delta for delta, _, _ in found) / len(found)
    below = sum((delta - low) ** 2 for delta, low, _ in found) ** 0.5 / n
    above = sum((high - delta) ** 2 for delta, _, high in found) ** 0.5 / n
    return Interval(mean, mean - below, mean + above)


def mean_sealed(rows: Sequence[Row], task: str, system: str) -> float | None:
    """The mean over seeds of a system's sealed score, the baseline's where it cannot run; None where it has none."""
    gains = gains_of(rows, system).get(task)
    if gains is None:
        return None
    asked = [seed for seed in seeds_of(rows, task) if (task, seed) in cells_of(rows, system)]
    before = [value_of(rows, task, seed, BASELINE, "sealed") or 0.0 for seed in asked]
    return sum(a + b for a, b in zip(before, gains, strict=True)) / len(gains)
