"""Intervals for scores in [0, 1], and for the difference of two paired series of them.

Covered: Wilson's interval for one series of 0/1 scores, Tango's score interval for the difference of two paired ones, a
bootstrap over groups for everything else, and the minimum detectable effect of either.
`alpha` is one-sided everywhere: each end of an interval errs with that probability, so the level is 1 - 2 alpha. It may
be far below what resampling can resolve, since alpha spending halves it every other opening.

Not covered: which of them decides a promotion (see `decide`), and how much alpha there is (see `ledger`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 10_000
POWER = 0.8
SCORES = (0.0, 1.0)
"""The least and the greatest score."""
DIFFERENCES = (-1.0, 1.0)
"""The least and the greatest difference of two scores."""


class Interval(NamedTuple):
    """Both ends, in the unit of the scores."""

    low: float
    high: float


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

    Wilson's for 0/1 scores of rows that are all their own group, else the bootstrap over groups.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    if is_binary(values) and is_ungrouped(groups):
        return wilson(int(values.sum()), len(values), alpha)
    return bootstrap(values, groups, alpha, limits=SCORES)


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


def bootstrap(
    values: ArrayLike,
    groups: ArrayLike,
    alpha: float,
    *,
    limits: tuple[float, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of the mean of `values`, resampling whole groups.

    Each end is the wider one of two. The percentile of the resampled means follows skewed values, but says nothing
    about an alpha below 1 / resamples, nor about outcomes too rare to be in the sample: a candidate that is a little
    better on every row seen would pass at any alpha. Student's t end, whose standard error counts one more group at
    each of the `limits` (after Agresti and Min 2005, Statistics in Medicine 24:729-740), covers those.

    Args:
        values: one number for each row, within `limits`.
        groups: the group of each row.
        alpha: one-sided error of each end, in (0, 0.5).
        limits: the least and the greatest value possible.
        resamples: more resolve a smaller alpha.
        seed: the same seed and rows give the same interval.
    """
    import numpy as np
    from scipy.stats import t as student

    totals, sizes = _by_group(values, groups)
    count, centre = len(totals), totals.sum() / sizes.sum()
    means = np.empty(resamples)
    random = np.random.default_rng(seed)
    step = max(1, 2_000_000 // count)  # bounds the memory of one draw to a few tens of megabytes
    for start in range(0, resamples, step):
        drawn = random.integers(0, count, (min(step, resamples - start), count))
        means[start : start + step] = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    reach = student.isf(alpha, max(count - 1, 1)) * _standard_error(totals, sizes, limits)
    low, high = np.quantile(means, (alpha, 1 - alpha))
    return Interval(float(max(min(low, centre - reach), limits[0])), float(min(max(high, centre + reach), limits[1])))


def paired_interval(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike, alpha: float
) -> tuple[Interval, Literal["tango", "bootstrap"]]:
    """The interval of the mean of `first - second` (two scores of each row), and the method.

    Tango's for 0/1 scores of rows that are all their own group, else the bootstrap over groups.
    """
    import numpy as np

    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    differences = first - second
    if is_binary(first) and is_binary(second) and is_ungrouped(groups):
        low, high = tango((differences > 0).sum(), (differences < 0).sum(), len(differences), alpha)
        return Interval(float(low), float(high)), "tango"
    return bootstrap(differences, groups, alpha, limits=DIFFERENCES), "bootstrap"


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
    """The smallest true mean difference that the bootstrap's t end shows with 80 % power, in (0, 1]."""
    from scipy.stats import norm
    from scipy.stats import t as student

    totals, sizes = _by_group(differences, groups)
    reach = student.isf(alpha, max(len(totals) - 1, 1)) + norm.ppf(POWER)
    return float(min(reach * _standard_error(totals, sizes, DIFFERENCES), 1.0))


def _by_group(values: ArrayLike, groups: ArrayLike) -> tuple[Floats, Floats]:
    """The sum and the number of the values of each group, in the order of the groups' names."""
    import numpy as np

    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(index).astype(float)
    return np.bincount(index, weights=np.asarray(values, dtype=float)).astype(float), sizes


def _standard_error(totals: Floats, sizes: Floats, limits: tuple[float, float]) -> float:
    """The linearised standard error of a ratio of group sums, with one group of mean size at each limit added."""
    import numpy as np

    sizes = np.append(sizes, (sizes.mean(), sizes.mean()))
    totals = np.append(totals, sizes[-2:] * limits)
    residuals = totals - totals.sum() / sizes.sum() * sizes
    return float(np.sqrt(len(sizes) / (len(sizes) - 1) * (residuals**2).sum()) / sizes.sum())
