"""A line for every system that is through: its gain, its calls, the time so far, and about how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.optimizers.rows import Row


def spell(seconds: float) -> str:
    """A time for people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Clock:
    """Counts the systems of a run. What was kept, or could not run, took no time, and says nothing about the rest."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        """Args: total: systems over all tasks and seeds. now: seconds."""
        self._now, self._began, self._left, self._total = now, now(), total, total
        self._before, self._took = self._began, []

    def say(self, what: str) -> None:
        """Tell what is going on, with the time so far."""
        print(f"{spell(self._now() - self._began):>12}  {what}", file=sys.stderr, flush=True)

    def done(self, rows: Sequence[Row], measured: bool) -> None:
        """Count a system whose rows these are.

        Args:
            measured: whether it was measured now; its share of the task's profile and baseline counts as its own.
        """
        self._left -= 1
        now = self._now()
        if measured:
            self._took.append(now - self._before)
        self._before = now
        rest = (
            f"about {spell(self._left * sum(self._took) / len(self._took))} left" if self._took else "the rest unknown"
        )
        done = self._total - self._left
        found = describe(rows) if measured or rows[0]["value"] is None else f"{describe(rows)}, kept"
        self.say(f"{done}/{self._total}  {found}; {rest}")


def describe(rows: Sequence[Row]) -> str:
    """One system's rows in a few words."""
    first = rows[0]
    values = {row["measure"]: row["value"] for row in rows}
    where = f"{first['task']}, seed {first['seed']}: {first['system']}"
    if "delta" not in values:
        return f"{where} {first['measure']}"
    return f"{where} {100 * values['delta']:+.1f} points, {values['lm_calls']:.0f} calls"
