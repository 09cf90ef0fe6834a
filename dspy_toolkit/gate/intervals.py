"""Intervals for scores in [0, 1], and for the difference of two paired series of them.

Covered: Wilson's interval for one series of 0/1 scores, Tango's score interval for the difference of two paired ones,
the choice between these and `bounded_mean` for everything else, and the minimum detectable effect of either.
`alpha` is one-sided everywhere: each end of an interval errs with that probability, so the level is 1 - 2 alpha. It may
be far below what resampling can resolve, since each opening of a test set is granted less.

Not covered: which of them decides a promotion (see `verdict`), and how much alpha there is (see `ledger`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dspy_toolkit.gate.bounded_mean import Interval, bounded_mean, by_group, lower_end

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

Method = Literal["tango", "bootstrap", "bounded mean"]
"""How an interval was made; `bootstrap` is in records of version 0.1.0 only.

The two others are Tango's for paired 0/1 scores of rows that are all their own group, and `bounded_mean`."""
POWER = 0.8
SCORES = (0.0, 1.0)
"""The least and the greatest score."""
DIFFERENCES = (-1.0, 1.0)
"""The least and the greatest difference of two scores."""


def is_binary(values: ArrayLike) -> bool:
    """Whether every score is 0 or 1."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    return bool(np.isin(values, (0.0, 1.0)).all())


def is_ungrouped(groups: ArrayLike) -> bool:
    """Whether no two rows share a group."""
    import numpy as np

    groups = np.asarray(groups)
    return len(np.unique(groups)) == len(groups)


def mean_interval(values: ArrayLike, groups: ArrayLike, alpha: float = 0.025) -> Interval:
    """The interval of the mean of `values` (scores in [0, 1], one for each row); a 95 % interval by default.

    Wilson's for 0/1 scores of rows that are all their own group, else that of `bounded_mean`.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    if is_binary(values) and is_ungrouped(groups):
        return wilson(int(values.sum()), len(values), alpha)
    return bounded_mean(values, groups, alpha, SCORES)


def wilson(successes: int, n: int, alpha: float = 0.025) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22:209-212)."""
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(1 - 2 * alpha, method="wilson")
    return Interval(float(found.low), float(found.high))


def tango(wins: ArrayLike, losses: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[Floats, Floats]:
    """Tango's score interval for the difference of two paired proportions, (wins - losses) / n.

    Tango 1998, Statistics in Medicine 17:891-908. At a difference of 0 it is McNemar's test without correction.

    Args:
        wins: pairs in which only the first scored 1; these four broadcast.
        losses: pairs in which only the second scored 1.
        n: all pairs.
        alpha: one-sided error of each end, in (0, 0.5).

    Returns: the lower and the upper ends, in [-1, 1], to about 1e-15.
    """
    import numpy as np
    from scipy.stats import norm

    b, c, n, z = (np.asarray(part, dtype=float) for part in (wins, losses, n, norm.isf(alpha)))
    # Exchanging the two series mirrors the interval, so one end is enough to solve for.
    return _tango_lower(b, c, n, z), -_tango_lower(c, b, n, z)


def _tango_lower(b: Floats, c: Floats, n: Floats, z: Floats) -> Floats:
    """The difference in [-1, (b - c) / n] at which the score statistic, which falls as it grows, equals `z`."""
    import numpy as np

    b, c, n, z = np.broadcast_arrays(b, c, n, z)
    high = (b - c) / n
    low = np.full_like(high, -1.0)
    for _ in range(52):
        middle = (low + high) / 2
        rejected = _exceeds(middle, b, c, n, z)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def _exceeds(delta: Floats, b: Floats, c: Floats, n: Floats, z: Floats) -> NDArray[np.bool_]:
    """Whether Tango's statistic at `delta` is above `z`; written without its division, whose divisor may be 0."""
    import numpy as np

    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    # The maximum likelihood estimate of P(only the second scores 1), given the difference: Tango's equation 25.
    q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = np.maximum(n * (2 * q + delta * (1 - delta)), 0)
    return b - c - n * delta > z * np.sqrt(variance)


def paired_interval(first: ArrayLike, second: ArrayLike, groups: ArrayLike, alpha: float) -> tuple[Interval, Method]:
    """The interval of the mean of `first - second` (two scores of each row), and the method.

    Tango's for 0/1 scores of rows that are all their own group, else that of `bounded_mean`.
    """
    import numpy as np

    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    differences = first - second
    if is_binary(first) and is_binary(second) and is_ungrouped(groups):
        low, high = tango((differences > 0).sum(), (differences < 0).sum(), len(differences), alpha)
        return Interval(float(low), float(high)), "tango"
    return bounded_mean(differences, groups, alpha, DIFFERENCES), "bounded mean"


def detectable_proportion(discordance: float, n: int, alpha: float) -> float:
    """The smallest true difference of paired proportions that a test at `alpha` shows with 80 % power.

    Connor 1987, Biometrics 43:207-211, with the share of pairs that differ taken from the data. A difference of d needs
    at least a share d of pairs that differ, so the larger of the two is used.

    Args:
        discordance: the share of pairs whose scores differ, in [0, 1].
        n: pairs.
        alpha: one-sided.

    Returns: a difference in (0, 1]; 1 when none is detectable.
    """
    from scipy.stats import norm

    z, z_power = norm.isf(alpha), norm.ppf(POWER)
    low, high = 0.0, 1.0
    for _ in range(52):
        delta = (low + high) / 2
        share = max(discordance, delta)
        if delta * n**0.5 >= z * share**0.5 + z_power * (share - delta**2) ** 0.5:
            high = delta
        else:
            low = delta
    return high


def detectable_mean(differences: ArrayLike, groups: ArrayLike, alpha: float) -> float:
    """The smallest true mean difference that `bounded_mean` shows with 80 % power, in (0, 1].

    The differences that were seen are moved until their interval's lower end is 0; a sample has a mean that high or higher
    with 80 % probability where the true one is 0.84 standard errors above it.
    """
    import numpy as np
    from scipy.stats import norm

    seen = by_group(differences, groups)
    residuals = seen.totals - seen.totals.sum() / seen.sizes.sum() * seen.sizes
    error = float(np.sqrt((residuals**2).sum()) / seen.sizes.sum())
    mean = 0.0
    for _ in range(4):  # the lower end moves almost as far as the values do
        moved = np.clip(residuals + mean * seen.sizes, -seen.sizes, seen.sizes)
        mean -= lower_end(seen._replace(totals=moved), alpha, DIFFERENCES[0])
    return float(min(mean + norm.ppf(POWER) * error, 1.0))
