"""What was promised of racing and choosing, held against the measured rows.

A goal that was missed is said to be missed; nothing fails by it. Where there are several seeds, a task's score is the
mean over them, and a cost their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.optimizers.rows import ALONE, JOINT, PROFILE, SCRIPTED, Row, seeds_of, tasks_of, value_of

NEAR = 0.02
"""How far below the best single optimizer is still near."""
NEAR_TASKS = 0.8
"""The share of the tasks that have to be near: four of five."""
SPENT = 0.6
"""Of the calls of all optimizers alone, at most."""
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


def mean_of(rows: Sequence[Row], task: str, system: str, measure: str) -> float | None:
    """Over the task's seeds; None unless all have it."""
    values = [value_of(rows, task, seed, system, measure) for seed in seeds_of(rows, task)]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def best_alone(rows: Sequence[Row], task: str) -> tuple[str, float] | None:
    """(optimizer, sealed score) of the best single one; None when none ran."""
    scores = {system: mean_of(rows, task, system, "sealed") for system in ALONE}
    known = {system: score for system, score in scores.items() if score is not None}
    return max(known.items(), key=lambda entry: entry[1]) if known else None


def goals(rows: Sequence[Row]) -> list[Goal]:
    """All goals."""
    found = [goal for system in JOINT for goal in (never_below(rows, system), near_best(rows, system))]
    return [*found, spent(rows, "race"), profile_cost(rows), never_below(rows, "gepa"), scripted_gain(rows)]


def never_below(rows: Sequence[Row], system: str) -> Goal:
    """On no task and seed does the interval of the difference from the baseline lie below 0."""
    name = f"{system}: never below the baseline, beyond its interval"
    ends = {
        f"{task} (seed {seed})": high
        for task in tasks_of(rows)
        for seed in seeds_of(rows, task)
        if (high := value_of(rows, task, seed, system, "high")) is not None
    }
    if not ends:
        return Goal(name, None, "not measured")
    below = [where for where, high in ends.items() if high < 0]
    return Goal(name, not below, f"below on {', '.join(below)}" if below else f"on none of {len(ends)} runs")


def near_best(rows: Sequence[Row], system: str) -> Goal:
    """The sealed score is within NEAR of that of the best single optimizer, on NEAR_TASKS of the tasks."""
    name = f"{system}: within {100 * NEAR:.0f} points of the best single optimizer on {NEAR_TASKS:.0%} of the tasks"
    gaps: dict[str, float] = {}
    for task in tasks_of(rows):
        best, ours = best_alone(rows, task), mean_of(rows, task, system, "sealed")
        if best is not None and ours is not None:
            gaps[task] = ours - best[1]
    if not gaps:
        return Goal(name, None, "not measured")
    near = sum(gap >= -NEAR - 1e-9 for gap in gaps.values())
    shown = ", ".join(f"{task} {100 * gap:+.1f}" for task, gap in gaps.items())
    return Goal(name, near >= NEAR_TASKS * len(gaps), f"{near} of {len(gaps)} ({shown})")


def spent(rows: Sequence[Row], system: str) -> Goal:
    """The calls of `system` are at most SPENT of those of all optimizers alone, on every task."""
    name = f"{system}: at most {SPENT:.0%} of the calls of all optimizers alone"
    shares: dict[str, float] = {}
    for task in tasks_of(rows):
        pairs = [
            (
                value_of(rows, task, seed, system, "lm_calls"),
                sum(value_of(rows, task, seed, alone, "lm_calls") or 0 for alone in ALONE),
            )
            for seed in seeds_of(rows, task)
        ]
        if all(ours is not None for ours, _ in pairs) and (total := sum(all_ for _, all_ in pairs)):
            shares[task] = sum(ours or 0 for ours, _ in pairs) / total
    if not shares:
        return Goal(name, None, "not measured")
    shown = ", ".join(f"{task} {share:.0%}" for task, share in shares.items())
    return Goal(name, max(shares.values()) <= SPENT, shown)


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
    found = [
        (value_of(rows, SCRIPTED, seed, "gepa", "delta"), value_of(rows, SCRIPTED, seed, "gepa", "low"))
        for seed in seeds_of(rows, SCRIPTED)
    ]
    known = [(delta, low) for delta, low in found if delta is not None and low is not None]
    if not known:
        return Goal(name, None, "not measured")
    shown = ", ".join(f"{100 * delta:+.1f} points, at least {100 * low:+.1f}" for delta, low in known)
    return Goal(name, all(low > 0 for _, low in known), shown)
