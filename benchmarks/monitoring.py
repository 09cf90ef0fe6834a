"""How often the test of a fall is wrong, and how soon it is right: simulated months of labelled replies, right or wrong.

python -m benchmarks.monitoring

Prints the tables of docs/monitoring.md; some minutes on one core. Seeded: the same numbers each time.

The first table holds replies against a promoted score that is known. In the second it is drawn, as in life, on as many rows as were
sealed, and three ways to grant its error are compared, all with an alarm at an e-value of 1 / ALPHA:

    as exact    the drawn score is taken for the true one
    lower end   the lower end of its 95 % interval is (Wilson's)
    granted     `fall_of`: every score below it, each at the price of how much less likely the sealed rows are under it

`strictly` is what a roll-back needs: `Fall.confirmed`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from dspy_toolkit.monitoring.sequential import drawn_e_values, e_values

PROMOTED = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
DRAWN = (0.95, 0.9, 0.8)
"""Of the second table."""
SEALED = (240, 1000)
"""Rows."""
RULES = ("as exact", "lower end", "granted", "strictly")
FALL = 0.1
ALPHA = 0.01
"""Half of `monitor.false_alarm_rate`."""
MONTH = 600
"""Labelled replies."""
SOON = 150


def first_alarm(path: np.ndarray) -> float:
    """The row of the first alarm, from 1; infinite where there is none."""
    rows = np.flatnonzero(path >= 1 / ALPHA)
    return float(rows[0] + 1) if rows.size else np.inf


def lower_end(mean: float, rows: int, errors: float = 1.96) -> float:
    """Of Wilson's interval."""
    share = errors**2 / rows
    width = errors * np.sqrt(mean * (1 - mean) / rows + share / (4 * rows))
    return float((mean + share / 2 - width) / (1 + share))


def alarms(scores: np.ndarray, reference: float, rows: int) -> list[float]:
    """The first alarm by each of RULES."""
    exact, lower = e_values(scores, reference), e_values(scores, lower_end(reference, rows))
    return [first_alarm(path) for path in (exact, lower, *drawn_e_values(scores, reference, rows))]


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
        false = np.mean([np.isfinite(first_alarm(e_values(draw(promoted, MONTH), promoted))) for _ in range(runs)])
        found = [first_alarm(e_values(draw(promoted - FALL, MONTH), promoted)) for _ in range(runs)]
        late = []
        for _ in range(runs):
            good = 300 + int(rng.integers(50))  # not where a bet begins
            scores = np.concatenate([draw(promoted, good), draw(promoted - FALL, SOON)])
            late.append(good < first_alarm(e_values(scores, promoted)) <= good + SOON)
        share, middle = np.mean(np.array(found) <= SOON), np.median(found)
        yield f"| {promoted:.0%} | {100 * false:.1f} | {share:.0%} | {middle:.0f} | {np.mean(late):.0%} |"
    yield ""
    yield "| promoted with | measured on | its error | false alarms in 100 months | found within 150 | found within 300 | rows until half are found |"
    yield "|---|---|---|---|---|---|---|"
    for promoted in DRAWN:
        for rows in SEALED:
            quiet, fallen = (
                np.array([alarms(draw(truth, MONTH), float(draw(promoted, rows).mean()), rows) for _ in range(runs)])
                for truth in (promoted, promoted - FALL)
            )
            for place, rule in enumerate(RULES):
                false, at = 100 * np.mean(np.isfinite(quiet[:, place])), fallen[:, place]
                soon, later, middle = np.mean(at <= SOON), np.mean(at <= 2 * SOON), np.median(at)
                half = f"{middle:.0f}" if np.isfinite(middle) else f"more than {MONTH}"
                yield f"| {promoted:.0%} | {rows} rows | {rule} | {false:.1f} | {soon:.0%} | {later:.0%} | {half} |"


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.monitoring", description=__doc__)
    options.add_argument("--runs", type=int, default=2000)
    for line in lines(options.parse_args().runs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
