"""What was promised of racing and choosing, held against the measured rows.

A goal that was missed is said to be missed; nothing fails by it. Systems are compared on the tasks and seeds on which
all of them have a gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.optimizers.gains import Interval, gains_of, less, of_task, over_tasks, shared
from benchmarks.optimizers.rows import ALONE, JOINT, PROFILE, SCRIPTED, Row, seeds_of, tasks_of, value_of

NEAR = 0.01
"""How far below the best single optimizer, on average over tasks and seeds."""
MEDIUM = 1_200
"""LM calls of the medium budget."""
PROFILED = 0.1
"""Of them for the profile, at most."""


class Goal(NamedTuple):
    """One goal."""

    name: str
    met: bool | None
    """None where nothing was measured that could tell."""
    found: str
    """The numbers."""


def goals(rows: Sequence[Row]) -> list[Goal]:
    """All goals."""
    found = [goal for system in JOINT for goal in (near_best(rows, system), never_below(rows, system))]
    return [*found, profile_cost(rows), scripted_gain(rows)]


def best_alone(rows: Sequence[Row]) -> tuple[str, Interval] | None:
    """(optimizer, gain) of the one that gains most over all tasks and seeds; None when none ran."""
    found = {system: over_tasks(gains) for system in ALONE if (gains := gains_of(rows, system))}
    return max(found.items(), key=lambda entry: entry[1].mean) if found else None


def best_of_each(rows: Sequence[Row]) -> float | None:
    """The mean over tasks of what the best optimizer for each one gained there.

    Which one that is nobody knows before. It is picked by the rows that it is judged by, so it looks better than it is.
    """
    every = [gains_of(rows, system) for system in ALONE]
    best = [
        max(sum(gains[task]) / len(gains[task]) for gains in every if task in gains)
        for task in tasks_of(rows)
        if any(task in gains for gains in every)
    ]
    return sum(best) / len(best) if best else None


def near_best(rows: Sequence[Row], system: str) -> Goal:
    """The gain, over tasks and seeds, is at most NEAR below that of the single optimizer that gains most."""
    name = f"{system}: at most {100 * NEAR:.0f} point below the best single optimizer, over tasks and seeds"
    alone = [each for each in ALONE if gains_of(rows, each)]
    if not alone or not gains_of(rows, system):
        return Goal(name, None, "not measured")
    common = shared(rows, (system, *alone))
    best, ours, each = best_alone(common), gains_of(common, system), best_of_each(common)
    if best is None or each is None:
        return Goal(name, None, "not measured on the same tasks and seeds")
    gap = over_tasks(less(ours, gains_of(common, best[0])))
    mean = over_tasks(ours).mean
    shown = (
        f"{_points(mean)}, {best[0]} {_points(best[1].mean)}: {_points(gap.mean)} ({_points(gap.low)} to "
        f"{_points(gap.high)}); against the best of each task {_points(mean - each)}"
    )
    return Goal(name, gap.mean >= -NEAR - 1e-9, shown)


def never_below(rows: Sequence[Row], system: str) -> Goal:
    """On no task does the interval of the gain, over the seeds, lie below 0."""
    name = f"{system}: on no task worse than the baseline beyond its interval"
    found = {task: gain for task in tasks_of(rows) if (gain := of_task(rows, task, system)) is not None}
    if not found:
        return Goal(name, None, "not measured")
    below = [
        f"{task} {_points(gain.mean)} (at most {_points(gain.high)})" for task, gain in found.items() if gain.high < 0
    ]
    return Goal(name, not below, f"worse on {', '.join(below)}" if below else f"on none of {len(found)} tasks")


def profile_cost(rows: Sequence[Row]) -> Goal:
    """The profile takes less than PROFILED of a medium budget, on every task."""
    name = f"profile: under {PROFILED:.0%} of a medium budget"
    costs = [
        cost / MEDIUM
        for task in tasks_of(rows)
        for seed in seeds_of(rows, task)
        if (cost := value_of(rows, task, seed, PROFILE, "lm_calls")) is not None
    ]
    if not costs:
        return Goal(name, None, "not measured")
    return Goal(name, max(costs) < PROFILED, f"{min(costs):.1%} to {max(costs):.1%}")


def scripted_gain(rows: Sequence[Row]) -> Goal:
    """Between the scripted models, GEPA's gain on the sealed rows is above 0 beyond its interval."""
    name = "gepa: gains with a scripted reflector, on a scripted model that does as it is told"
    gain = of_task(rows, SCRIPTED, "gepa")
    if gain is None:
        return Goal(name, None, "not measured")
    return Goal(name, gain.low > 0, f"{_points(gain.mean)} points, at least {_points(gain.low)}")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
