"""How often the test of a fall is wrong, and how soon it is right: simulated months of labelled replies, right or wrong.

python -m benchmarks.monitoring

Prints the table of docs/monitoring.md; some minutes on one core. Seeded: the same numbers each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from dspy_toolkit.monitoring.sequential import e_values, fall_of

PROMOTED = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
FALL = 0.1
ALPHA = 0.01
"""Half of `monitor.false_alarm_rate`."""
MONTH = 600
"""Labelled replies."""
SOON = 150


def first_alarm(scores: np.ndarray, promoted: float) -> float:
    """The row of the first alarm, from 1; infinite where there is none."""
    rows = np.flatnonzero(e_values(scores, promoted) >= 1 / ALPHA)
    return float(rows[0] + 1) if rows.size else np.inf


def lines(runs: int) -> Iterator[str]:
    """The tables, line by line."""
    rng = np.random.default_rng(2026)

    def draw(truth: float, rows: int) -> np.ndarray:
        return (rng.random(rows) < truth).astype(float)

    yield f"A fall of {100 * FALL:.0f} points; alarms at {ALPHA}; {runs} runs each; a month has {MONTH} labelled replies."
    yield ""
    yield "| promoted with | false alarms in 100 months | found within 150 | rows until half are found | within 150 after 300 good rows |"
    yield "|---|---|---|---|---|"
    for promoted in PROMOTED:
        false = np.mean([np.isfinite(first_alarm(draw(promoted, MONTH), promoted)) for _ in range(runs)])
        found = [first_alarm(draw(promoted - FALL, MONTH), promoted) for _ in range(runs)]
        late = []
        for _ in range(runs):
            good = 300 + int(rng.integers(50))  # not where a bet begins
            at = first_alarm(np.concatenate([draw(promoted, good), draw(promoted - FALL, SOON)]), promoted)
            late.append(good < at <= good + SOON)
        share, middle = np.mean(np.array(found) <= SOON), np.median(found)
        yield f"| {promoted:.0%} | {100 * false:.1f} | {share:.0%} | {middle:.0f} | {np.mean(late):.0%} |"
    yield ""
    yield "| promoted with | measured on | suspected, no fall | confirmed, no fall | suspected, fallen | confirmed, fallen |"
    yield "|---|---|---|---|---|---|"
    few = max(runs // 20, 20)
    for promoted in (0.95, 0.8):
        for rows in (240, 1000):
            seen = []
            for truth in (promoted, promoted - FALL):
                tries = [
                    fall_of(draw(truth, 300), float(draw(promoted, rows).mean()), alpha=ALPHA, reference_rows=rows)
                    for _ in range(few)
                ]
                seen += [np.mean([each.suspected for each in tries]), np.mean([each.confirmed for each in tries])]
            yield f"| {promoted:.0%} | {rows} rows | {seen[0]:.0%} | {seen[1]:.0%} | {seen[2]:.0%} | {seen[3]:.0%} |"
    yield f"\nThe second table: {few} runs of 300 labelled replies each, the promoted score itself drawn."


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.monitoring", description=__doc__)
    options.add_argument("--runs", type=int, default=2000)
    for line in lines(options.parse_args().runs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
