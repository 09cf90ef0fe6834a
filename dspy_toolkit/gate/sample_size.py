"""How many rows a wanted gain needs, and what gain a number of rows can show.

Covered: 0/1 scores, by the share of rows whose scores differ (Connor 1987, see `intervals.detectable_proportion`), and
graded ones, by the standard deviation of the differences, for the interval of `bounded_mean`.
"""

from __future__ import annotations

from typing import NamedTuple

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.bounded_mean import Groups, lower_end
from dspy_toolkit.gate.intervals import DIFFERENCES, POWER, detectable_proportion
from dspy_toolkit.gate.ledger import alpha_of

MOST_ROWS = 10_000_000


class Power(NamedTuple):
    """What a test of so many rows shows, how often."""

    rows: int
    gain: float
    """True difference of the means, in (0, 1]."""
    power: float
    """The probability that it is shown."""
    alpha: float
    """The one-sided error of the opening."""


def power(
    *,
    gain: float | None = None,
    rows: int | None = None,
    discordance: float | None = None,
    sd: float | None = None,
    rate: float = 0.05,
    looks: int = 1,
) -> Power:
    """The rows that a gain needs to be shown four times in five; the gain that so many rows show; or, given both, how often.

    Args:
        gain: the true difference of the means, in (0, 1).
        rows: rows of the test, each its own group.
        discordance: the share of rows whose 0/1 scores differ between the two programs, in (0, 1]; 0.2 when neither
            this nor `sd` is given. A gain needs at least as large a share, so the larger of the two counts.
        sd: for graded scores, the standard deviation of the differences, in (0, 1].
        rate: the false-promotion rate over the life of the rows, in (0, 0.5).
        looks: which opening of the rows it is, from 1.

    Raises:
        DatasetError: neither `gain` nor `rows` is given, both of `discordance` and `sd` are, or one is out of range; or no number of
            rows shows the gain.
    """
    _check(gain, rows, discordance, sd, rate, looks)
    alpha, share = alpha_of(rate, looks), 0.2 if discordance is None else discordance

    def shown(n: int) -> float:
        """The gain that `n` rows show four times in five."""
        return detectable_proportion(share, n, alpha) if sd is None else _detectable(n, sd, alpha)

    if gain is None:
        assert rows is not None
        return Power(rows, shown(rows), POWER, alpha)
    if rows is not None:
        return Power(rows, gain, _power(gain, rows, share, sd, alpha), alpha)
    low, high = 0, 1
    while shown(high) > gain:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            raise DatasetError(f"No test of up to {MOST_ROWS:,} rows shows a gain of {gain:g}. Ask for a larger one.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shown(middle) > gain else (low, middle)
    return Power(high, gain, POWER, alpha)


def _power(gain: float, n: int, discordance: float, sd: float | None, alpha: float) -> float:
    from scipy.stats import norm

    if sd is not None:
        return float(norm.cdf((gain - _least(n, sd, alpha)) * n**0.5 / sd))
    share = max(discordance, gain)
    spread = (share - gain**2) ** 0.5
    reach = gain * n**0.5 - float(norm.isf(alpha)) * share**0.5
    return float(norm.cdf(reach / spread)) if spread else float(reach >= 0)


def _detectable(n: int, sd: float, alpha: float) -> float:
    from scipy.stats import norm

    return float(_least(n, sd, alpha) + norm.ppf(POWER) * sd / n**0.5)


def _least(n: int, sd: float, alpha: float) -> float:
    """The mean from which `n` normal differences have a lower end above 0."""
    import numpy as np
    from scipy.stats import norm

    # A thousand quantiles stand for more rows than that: the interval's width goes with the root of the number.
    some = min(n, 1000)
    values = norm.ppf((np.arange(some) + 0.5) / some) * sd
    weights = np.full(some, n / some)
    mean = 0.0
    for _ in range(4):  # the lower end moves almost as far as the values do
        moved = np.clip(values + mean, *DIFFERENCES)
        mean -= lower_end(Groups(moved * weights, weights), alpha, DIFFERENCES[0])
    return mean


def _check(
    gain: float | None, rows: int | None, discordance: float | None, sd: float | None, rate: float, looks: int
) -> None:
    if gain is None and rows is None:
        raise DatasetError("Give a gain to find the rows, or rows to find the gain.")
    if discordance is not None and sd is not None:
        raise DatasetError("Give a discordance (of 0/1 scores) or an sd (of graded ones), not both.")
    for name, value, most in (("gain", gain, 1), ("discordance", discordance, 1), ("sd", sd, 1), ("rate", rate, 0.5)):
        if value is not None and not 0 < value <= most:
            raise DatasetError(f"The {name} is {value:g}, outside (0, {most:g}]. Give a share, such as 0.05.")
    for name, number in (("rows", rows), ("looks", looks)):
        if number is not None and number < 1:
            raise DatasetError(f"There are {number} {name}, fewer than one. Give a whole number from 1.")
