"""Has the mean of a program's scores fallen below what it was? A test that may be looked at after every row, for ever.

Scores x in [0, 1] come one after the other. A gambler who holds that their mean is below m bets on it:

    K_n(λ) = Π (1 + λ (m - x_i)),   0 <= λ < 1 / (1 - m)

If the mean, given what came before, is m or more, no bet gains in expectation, and the chance that K ever reaches 1/alpha is
at most alpha (Ville's inequality; Waudby-Smith and Ramdas 2024, JRSS B 86:1-27). A mean of bets is such a bet too. Here it is
over two things: the size of the fall, that is λ = d / (m (1 - m)) for falls d from 3 to 50 points, and where the fall begins:
half of the stake is on the first row, the rest on every 50th row after it with falling shares, so that a program that was good
for a thousand rows is not believed for a thousand more. The mean is the e-value of `Fall`: evidence, not a probability, and
1/e bounds the error of whoever stops at the first row that convinces.

m itself is measured, on the sealed rows of the promotion. `e_value` takes it as it is; `e_value_beyond_chance` grants the old
score its own sampling error: for every m below it the evidence that m is right is multiplied in, and the least favourable one
counts (min over m of E_old(m) E_new(m), valid as a product of independent e-values at the true m). The first may be spent on
what is cheap to undo, an alert and a new search; the second on a roll-back.

What was measured (tests/monitoring/test_sequential.py repeats a part of it) is in docs/monitoring.md.

Not covered: rows that are graded because of how they were answered: who complains is no random sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

FALLS = (0.03, 0.06, 0.1, 0.15, 0.25, 0.5)
SHARES = (0.05, 0.15, 0.4, 0.25, 0.1, 0.05)
"""Of the stake, on each size of a fall."""
EVERY = 50
"""Rows between two beginnings."""
LARGEST_BET = 0.95
"""As a share of the bet that could lose everything."""
EDGE = 1e-3
"""A reference is kept so far from 0 and 1."""
GRID = 60
"""Values of the old score that are tried."""


class Fall(Frozen):
    """What the scores say about a fall of their mean."""

    reference: float = Field(ge=0, le=1)
    """The mean when the program was promoted."""
    n: int
    """Rows that count."""
    mean: float | None
    """Theirs; None without rows."""
    high: float
    """Upper end of a confidence sequence for the mean: with the chance 1 - alpha it was never below the true mean."""
    e_value: float
    """Against `the mean is the reference, or better`, the greatest so far."""
    e_value_beyond_chance: float
    """The same where the reference is itself uncertain; equal to `e_value` where it is not."""
    alpha: float
    """The chance of a false alarm, over all rows of this program together."""
    first: int | None
    """The row, from 1, at which the e-value first reached 1 / alpha."""

    @property
    def suspected(self) -> bool:
        """The mean is below the reference as it was measured."""
        return self.e_value >= 1 / self.alpha

    @property
    def confirmed(self) -> bool:
        """It is below it also when the reference's own error is granted."""
        return self.e_value_beyond_chance >= 1 / self.alpha

    @property
    def sentence(self) -> str:
        """For people."""
        if self.mean is None:
            return "No row has a score yet."
        return (
            f"{100 * self.mean:.1f} % on {self.n} rows; it was {100 * self.reference:.1f} % when it was promoted "
            f"(e-value {self.e_value:.3g}, {self.e_value_beyond_chance:.3g} with the promotion's own error; "
            f"an alarm from {1 / self.alpha:.0f})."
        )


def fall_of(
    scores: Sequence[float], reference: float, *, alpha: float = 0.01, reference_rows: int | None = None
) -> Fall:
    """Whether the mean of `scores` has fallen below `reference`.

    Args:
        scores: in [0, 1], in the order in which they came; all since the program went live.
        reference: its mean score when it was promoted.
        alpha: the chance of a false alarm over the program's whole life, in (0, 0.5).
        reference_rows: on how many rows the reference was measured; None where it is known.
    """
    import numpy as np

    values = np.asarray(scores, dtype=float)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a score lies outside [0, 1]")
    path = e_values(values, reference)
    crossed = np.flatnonzero(path >= 1 / alpha)
    e_value = float(path.max(initial=1.0))
    beyond = e_value if reference_rows is None else _beyond_chance(values, reference, reference_rows)
    return Fall(
        reference=reference,
        n=int(values.size),
        mean=float(values.mean()) if values.size else None,
        high=upper_end(values, alpha),
        e_value=e_value,
        e_value_beyond_chance=beyond,
        alpha=alpha,
        first=int(crossed[0]) + 1 if crossed.size else None,
    )


def e_values(scores: ArrayLike, reference: float, every: int = EVERY) -> Floats:
    """The e-value after each row: shape (n,). Under a mean of exactly `reference` its expectation is 1 at every row.

    Args:
        scores: in [0, 1].
        reference: m; kept a thousandth away from 0 and 1.
        every: rows between two beginnings.
    """
    import numpy as np

    values = np.asarray(scores, dtype=float)
    n = values.size
    if not n:
        return np.empty(0)
    m = float(np.clip(reference, EDGE, 1 - EDGE))
    gains = np.log1p(_bets(m)[:, None] * (m - values))
    totals = np.cumsum(gains, axis=1)
    starts = np.arange(0, n, every)
    shares = _shares(len(starts))
    # What has not begun yet holds its stake.
    waiting = 1 - np.cumsum(shares)[np.arange(n) // every]
    path = np.zeros(n)
    for share, start in zip(shares, starts, strict=True):
        before = totals[:, start - 1][:, None] if start else 0.0
        path[start:] += share * (np.asarray(SHARES)[:, None] * np.exp(totals[:, start:] - before)).sum(axis=0)
    return path + waiting


def upper_end(scores: ArrayLike, alpha: float) -> float:
    """The upper end of a confidence sequence for the mean: the least m that the bets have never refused; 1 without rows."""
    import numpy as np

    values = np.asarray(scores, dtype=float)
    low, high = float(values.mean()) if values.size else 1.0, 1.0
    # The greater m, the more a bet that the mean is below it has won.
    for _ in range(14 if values.size else 0):
        middle = (low + high) / 2
        if e_values_at_once(values, middle) >= 1 / alpha:
            high = middle
        else:
            low = middle
    return high


def e_values_at_once(values: Floats, m: float) -> float:
    """The greatest e-value against `the mean is m or more` of the bets that begin with the first row."""
    import numpy as np

    m = float(np.clip(m, EDGE, 1 - EDGE))
    totals = np.cumsum(np.log1p(_bets(m)[:, None] * (m - values)), axis=1)
    return float((np.asarray(SHARES)[:, None] * np.exp(totals)).sum(axis=0).max(initial=1.0))


def _beyond_chance(values: Floats, reference: float, rows: int) -> float:
    """The greatest over time of the least over m of E_old(m) E_new(m)."""
    import numpy as np

    if not values.size:
        return 1.0
    # Farther below, the old rows alone refuse m; farther above, the new ones gain more than at the reference.
    error = max((reference * (1 - reference) / max(rows, 1)) ** 0.5, 1 / max(rows, 1))
    grid = np.clip(np.linspace(reference - 6 * error, reference + 3 * error, GRID), EDGE, 1 - EDGE)
    least = np.full(values.size, np.inf)
    for m in grid:
        least = np.minimum(least, old_evidence(float(m), reference, rows) * e_values(values, float(m)))
    return float(max(least.max(), 1.0))


def old_evidence(m: float, reference: float, rows: int) -> float:
    """An e-value against `the old mean is m` from the old rows: half of the stake is kept, the rest is bet on their mean being 1.5
    and 3 of its standard errors above m.

    Of graded scores only the mean is known: 0/1 scores of that mean are the worst case, for log(1 + λ(x - m)) is concave in x.
    """
    import numpy as np

    right, variance = reference * rows, m * (1 - m)
    kept = 0.5
    for errors in (1.5, 3.0):
        bet = min(errors / (variance * rows) ** 0.5, LARGEST_BET / m)
        won = right * np.log1p(bet * (1 - m)) + (rows - right) * np.log1p(-bet * m)
        kept += 0.25 * float(np.exp(min(won, 600.0)))
    return kept


def _bets(m: float) -> Floats:
    """λ for each size of a fall: the best bet on a 0/1 score whose mean is so much below m."""
    import numpy as np

    return np.minimum(np.asarray(FALLS) / (m * (1 - m)), LARGEST_BET / (1 - m))


def _shares(beginnings: int) -> Floats:
    """Stakes on the first row and on later beginnings; they never sum to more than 1."""
    import numpy as np

    later = np.arange(1, beginnings, dtype=float)
    return np.concatenate([[0.5], 0.5 / (later * (later + 1))])[:beginnings]
