"""The decisions of the pool: pure functions of scores and costs.

**Rungs.** Candidates are scored on the first rows of one fixed sample, so that two of them always have rows in common. A
rung is a number of rows; each is twice the one before. All candidates reach the first rung, the better half of a rung
the next one (sequential halving: Karnin, Koren and Somekh 2013; over prompts: Shi et al. 2024, arXiv:2402.09723). Halving
wastes little on bad candidates, and compares the last ones on many rows.

**Which generator makes the next candidate.** The one whose next candidate has the largest expected improvement over the
best so far, for each call that making, scoring and climbing cost (expected improvement: Jones, Schonlau and Welch 1998).
Gains of one generator's candidates are taken for normal around a mean of its own, which has a prior; that mean is drawn
from its posterior (Thompson sampling), so that a generator that was unlucky at first is asked again.

What does not help: asking each generator once before anything is known of it (a small budget has room for ten
candidates, and the dear ones are then half of it), and keeping a share of the budget for late challengers
(`benchmarks/optimizers/races.py` compares such).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.pool.entry import Entry, Family

FIRST_ROWS = 8
"""Rows of the first rung: with more, a small budget has room for too few candidates."""
LEAST_LAST_ROWS = 40
"""Rows of the last rung, where there are as many: with fewer the best of the last candidates is the luckiest."""
LAST_SHARE = 1 / 15
"""Of the budget, that scoring one candidate on all rows of the last rung may cost beyond that."""
SPREAD = 0.06
"""Standard deviation of the true scores of one generator's candidates: between 4 and 8 points on the tasks of
`benchmarks.optimizers`."""
FAMILY_SPREAD = 0.1
"""Standard deviation of the generators' means around what is expected of them."""
ROW_VARIANCE = 0.25
"""Variance of the difference of two candidates' scores on one row: that of 0/1 scores where a quarter of the rows differ."""
CURIOSITY = 0.5
"""The standard deviation of that draw, over that of the posterior: with 1 a small budget goes to dear generators by chance."""
ALL = 4
"""Candidates that the expectation of the common mean counts as."""


def rungs(rows: int, calls: int, calls_per_run: float) -> tuple[int, ...]:
    """The numbers of rows on which candidates are compared, ascending; the last is the most that the search reads.

    Args:
        rows: validation rows, at least 1.
        calls: the budget in LM calls.
        calls_per_run: LM calls of one run of the program, at least 1.
    """
    most = min(rows, max(LEAST_LAST_ROWS, int(LAST_SHARE * calls / calls_per_run)))
    steps = [min(FIRST_ROWS, most)]
    while steps[-1] < most:
        steps.append(min(2 * steps[-1], most))
    # A last step that adds few rows decides nothing that the one before did not.
    if len(steps) > 1 and steps[-1] < 1.3 * steps[-2]:
        del steps[-2]
    return tuple(steps)


def climbing(steps: Sequence[int]) -> float:
    """Rows that a candidate is expected to be scored on beyond the first rung, when half of each rung goes on."""
    return sum((after - before) / 2**number for number, (before, after) in enumerate(itertools.pairwise(steps), 1))


def improvement(family: Family, families: Sequence[Family], best: float, first: int, random: Random) -> float:
    """Expected improvement of the next candidate of `family` over the best gain so far, for a mean drawn from its posterior.

    Args:
        families: all, this one included; what is common to their gains is the prior of each.
        best: the best gain over the baseline, shrunk as `shrunk` does; not below 0.
        first: rows of the first rung.
    """
    noise = ROW_VARIANCE / first + SPREAD**2
    gains = [gain for each in families for gain in each.gains]
    common = sum(gains) / (len(gains) + ALL)
    precision = FAMILY_SPREAD**-2 + len(family.gains) / noise
    mean = ((common + family.prior) * FAMILY_SPREAD**-2 + sum(family.gains) / noise) / precision
    mean += random.gauss(0, CURIOSITY * precision**-0.5)
    z = (mean - best) / SPREAD
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return SPREAD * (z * (1 + math.erf(z / math.sqrt(2))) / 2 + density)


def shrunk(gain: float, rows: int, common: float) -> float:
    """The expected true gain of a candidate whose mean gain on `rows` rows is `gain`, where candidates gain `common` on average."""
    noise = ROW_VARIANCE / max(rows, 1)
    return (gain / noise + common / SPREAD**2) / (1 / noise + 1 / SPREAD**2)


def ranked(entries: Sequence[Entry], rows: int) -> list[Entry]:
    """The best first, by the mean on the first `rows` rows; of equal ones the cheaper prompt, then the earlier."""
    return sorted(entries, key=lambda entry: (-entry.mean(rows), entry.tokens, entry.number))
