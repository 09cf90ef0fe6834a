"""Has the mean of a program's scores fallen below what it was? A test that may be looked at after every row, for ever.

Scores x in [0, 1] come one after the other. A gambler who holds that their mean is below m bets on it:

    K_n(λ) = Π (1 + λ (m - x_i)),   0 <= λ < 1 / (1 - m)

If the mean, given what came before, is m or more, no bet gains in expectation, and the chance that K ever reaches 1/alpha is
at most alpha (Ville's inequality; Waudby-Smith and Ramdas 2024, JRSS B 86:1-27). A mean of bets is such a bet too. Here it is
over two things: the size of the fall, that is λ = d / (m (1 - m)) for falls d from 3 to 50 points, and where the fall begins:
half of the stake is on the first row, the rest on every 50th row after it with falling shares, so that a program that was good
for a thousand rows is not believed for a thousand more. The mean is the e-value of a fall below m: evidence, not a probability,
and 1/e bounds the error of whoever stops at the first row that convinces.

m itself is measured, on the sealed rows of the promotion, and who takes it as exact is wrong too often: every score that was
drawn too high looks like a fall afterwards. So for every m the e-value E_new(m) of a fall below m is multiplied by what the old rows
say against m, and the least favourable m counts. Twice, with two measures of that:

    e_value                 how many times less likely the old rows are under m than under their own mean, for m below it. A false
                            alarm at 1/alpha then has at most the chance alpha P(R < m) + E[min(1, alpha L(R, m)); R >= m], R the
                            old mean and L that ratio: at most 2.6 alpha for any m at alpha = 0.01.
    e_value_beyond_chance   an e-value E_old(m) of bets on the old rows, for any m: a product of independent e-values at the true
                            m, so at most alpha. It is never greater than the first.

The first may be spent on what is cheap to undo, an alert and a new search; the second on a roll-back.

What was measured (tests/monitoring/test_sequential.py repeats a part of it) is in docs/monitoring.md.

Not covered: rows that are graded because of how they were answered: who complains is no random sample. That a candidate is
promoted because it scored well: how much of its score is that luck is not granted.
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
GRID = 61
"""Values of the old score that are tried, from 6 of its standard errors below it to 3 above; the 41st is itself."""
GREATEST = 600.0
"""The logarithm of an e-value is cut there, before it is more than a number can hold."""


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
    """Against `the mean is what it was when the program was promoted, or better`, the greatest so far, with the sampling error of
    the reference granted."""
    e_value_beyond_chance: float
    """The same, more strictly; equal to `e_value` where the reference is known."""
    alpha: float
    """The chance of a false alarm, over all rows of this program together; of `suspected` see the module."""
    first: int | None
    """The row, from 1, at which the e-value first reached 1 / alpha."""

    @property
    def suspected(self) -> bool:
        """The mean is below what it was, with the reference's own error granted."""
        return self.e_value >= 1 / self.alpha

    @property
    def confirmed(self) -> bool:
        """The same, more strictly."""
        return self.e_value_beyond_chance >= 1 / self.alpha

    @property
    def sentence(self) -> str:
        """For people."""
        if self.mean is None:
            return "No row has a score yet."
        return (
            f"{100 * self.mean:.1f} % on {self.n} rows; it was {100 * self.reference:.1f} % when it was promoted "
            f"(e-value {self.e_value:.3g}, {self.e_value_beyond_chance:.3g} more strictly; "
            f"an alarm from {1 / self.alpha:.0f})."
        )


def fall_of(
    scores: Sequence[float], reference: float, *, alpha: float = 0.01, reference_rows: int | None = None
) -> Fall:
    """Whether the mean of `scores` has fallen below `reference`.

    Args:
        scores: in [0, 1], in the order in which they came; all since the program went live.
        reference: its mean score when it was promoted.
        alpha: the chance of a false alarm over the program's whole life, in (0, 0.5); an alarm is an e-value of 1 / alpha.
        reference_rows: on how many rows the reference was measured; None where it is known.
    """
    import numpy as np

    values = np.asarray(scores, dtype=float)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a score lies outside [0, 1]")
    path = strict = e_values(values, reference)
    if reference_rows is not None:
        path, strict = drawn_e_values(values, reference, reference_rows)
    crossed = np.flatnonzero(path >= 1 / alpha)
    return Fall(
        reference=reference,
        n=int(values.size),
        mean=float(values.mean()) if values.size else None,
        high=upper_end(values, alpha),
        e_value=float(path.max(initial=1.0)),
        e_value_beyond_chance=float(strict.max(initial=1.0)),
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

    return np.exp(np.minimum(_log_e_values(np.asarray(scores, dtype=float), reference, every), GREATEST))


def _log_e_values(values: Floats, reference: float, every: int = EVERY) -> Floats:
    """Their natural logarithms, which no number of rows makes too great to hold."""
    import numpy as np

    n = values.size
    if not n:
        return np.empty(0)
    m = float(np.clip(reference, EDGE, 1 - EDGE))
    totals = np.cumsum(np.log1p(_bets(m)[:, None] * (m - values)), axis=1)
    starts, place = np.arange(0, n, every), np.arange(n) // every
    shares = _shares(len(starts))
    # A bet that begins at row s has gained Π over the rows since: that of all rows over that of those before s.
    before = np.concatenate([np.zeros((len(FALLS), 1)), totals[:, starts[1:] - 1]], axis=1)
    begun = np.logaddexp.accumulate(np.log(shares) - before, axis=1)[:, place]
    # What has not begun yet holds its stake.
    waiting = np.log(1 - np.cumsum(shares)[place])
    return np.logaddexp.reduce([waiting, *(np.log(SHARES)[:, None] + totals + begun)])


def drawn_e_values(scores: ArrayLike, reference: float, rows: int) -> tuple[Floats, Floats]:
    """The e-value after each row where the reference was drawn as well, and the strict one: shape (n,) each.

    Args:
        scores: in [0, 1].
        reference: the mean of the old rows.
        rows: how many they were, 1 or more.
    """
    import numpy as np

    values = np.asarray(scores, dtype=float)
    # Farther below, the old rows alone refuse m; farther above, the new ones gain more than at the reference.
    error = max((reference * (1 - reference) / rows) ** 0.5, 1 / rows)
    grid = np.clip(np.linspace(reference - 6 * error, reference + 3 * error, GRID), EDGE, 1 - EDGE)
    path, strict = np.full((2, values.size), np.inf)
    for m in map(float, grid):
        new = _log_e_values(values, m)
        strict = np.minimum(strict, np.log(old_evidence(m, reference, rows)) + new)
        if m <= np.clip(reference, EDGE, 1 - EDGE) + 1e-12:
            path = np.minimum(path, log_ratio(m, reference, rows) + new)
    return np.exp(np.minimum(path, GREATEST)), np.exp(np.minimum(strict, GREATEST))


def log_ratio(m: float, reference: float, rows: int) -> float:
    """How many times less likely 0/1 scores of the mean `reference` are under m than under that mean; the logarithm, 0 or more.

    Graded scores of that mean vary less, so that they are less likely still.
    """
    from scipy.special import rel_entr

    return rows * float(rel_entr(reference, m) + rel_entr(1 - reference, 1 - m))


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
    path = np.logaddexp.reduce(np.log(SHARES)[:, None] + totals)
    return float(np.exp(min(path.max(initial=0.0), GREATEST)))


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
        kept += 0.25 * float(np.exp(min(won, GREATEST)))
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
