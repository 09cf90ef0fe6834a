"""How far a judge agrees with people, and what its mean says once its errors are known.

A judge that flatters gives a high mean to anything. Some 30 to 100 rows that people graded too show it: `agree` says how
often the two grades are the same, and how much of that is more than chance (Cohen's kappa); `calibrate` counts how often
the judge passes what people passed and fails what they failed; `corrected_mean` gives the share that people would have
passed of rows that only the judge has seen.

Not covered: more than one person's grades of a row (give their mean or majority), and asking the judge
(`dspy_toolkit.metrics.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation.estimates import Estimate
from dspy_toolkit.gate.intervals import wilson
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Weights = Literal["none", "linear", "quadratic"]
"""How much a disagreement counts: all alike, by the distance of the two grades, or by its square."""
PASSES = 0.5
"""The score from which an answer passes."""
RESAMPLES = 4_000
Z = 1.959963984540054
"""Of a 95 % interval."""


class Agreement(Frozen):
    """Two graders on the same rows."""

    n: int
    """Rows that both graded."""
    raw: Estimate
    """The share of rows with the same grade; Wilson's interval."""
    kappa: Estimate | None
    """Cohen's kappa: 1 where all grades are the same, 0 for what chance would give, below 0 for less. None where both
    graders gave one grade only: chance agrees as well then.
    """
    weights: Weights


class Calibration(Frozen):
    """How a judge treats what people passed, and what they failed."""

    positives: int = Field(ge=0)
    """Rows that people passed."""
    accepted: int = Field(ge=0)
    """Those of them that the judge passed."""
    negatives: int = Field(ge=0)
    """Rows that people failed."""
    rejected: int = Field(ge=0)
    """Those of them that the judge failed."""

    @property
    def sensitivity(self) -> Estimate | None:
        """P(the judge passes, people pass); None without such a row."""
        return _share(self.accepted, self.positives)

    @property
    def specificity(self) -> Estimate | None:
        """P(the judge fails, people fail); None without such a row."""
        return _share(self.rejected, self.negatives)


class JudgeCheck(Frozen):
    """What is known of a project's judge; `dspy-toolkit judge agreement` keeps it, and the pages of runs show it."""

    metric: str
    """A hash of the metric and its models: another judge is not what was checked."""
    source: str
    """The file of grades."""
    agreement: Agreement
    calibration: Calibration


def agree(judge: Sequence[Any], human: Sequence[Any], *, weights: Weights | None = None) -> Agreement:
    """Compare the grades of a judge with those of people, row by row.

    Cohen's kappa is 1 - (disagreement seen) / (disagreement of chance), from the two graders' own frequencies (Cohen 1960,
    Educational and Psychological Measurement 20:37-46; with weights Cohen 1968, Psychological Bulletin 70:213-220).
    Its interval is a percentile bootstrap over rows, the wider one of two at each end: of the rows, and of the rows with
    one more, which disagrees as chance would (for the lower end) or agrees (for the upper one).

    Args:
        judge: one grade for each row, numbers or names.
        human: the grades of people, on the same scale.
        weights: `quadratic` where grades are more than two numbers, else `none`, when not given.

    Raises:
        DatasetError: no rows, series of different length, or weights for grades that are no numbers.
    """
    import numpy as np

    if not len(judge) or len(judge) != len(human):
        raise DatasetError(
            f"There are {len(judge)} grades of the judge and {len(human)} of people. Give one of each for every row."
        )
    grades = list(dict.fromkeys([*judge, *human]))
    numbers = all(isinstance(grade, int | float) for grade in grades)
    grades = sorted(grades) if numbers else sorted(grades, key=str)
    weights = weights or ("quadratic" if numbers and len(grades) > 2 else "none")
    if weights != "none" and not numbers:
        raise DatasetError(f"The grades {grades[:5]} are no numbers, and {weights} weights need a distance. Use none.")
    place = {grade: number for number, grade in enumerate(grades)}
    table = np.zeros((len(grades), len(grades)))
    np.add.at(table, ([place[grade] for grade in judge], [place[grade] for grade in human]), 1.0)
    same = int(np.trace(table))
    low, high = wilson(same, len(judge))
    return Agreement(
        n=len(judge),
        raw=Estimate(value=same / len(judge), low=low, high=high),
        kappa=_kappa_interval(table, _distances(grades, weights)),
        weights=weights,
    )


def calibrate(judge: Sequence[float], human: Sequence[float], *, passes: float = PASSES) -> Calibration:
    """Count how a judge treats what people passed and failed.

    Args:
        judge: scores in [0, 1].
        human: scores of people in [0, 1], of the same rows.
        passes: the score from which an answer passes, for both.
    """
    pairs = [(ours >= passes, theirs >= passes) for ours, theirs in zip(judge, human, strict=True)]
    return Calibration(
        positives=sum(human for _, human in pairs),
        accepted=sum(judge and human for judge, human in pairs),
        negatives=sum(not human for _, human in pairs),
        rejected=sum(not judge and not human for judge, human in pairs),
    )


def corrected_mean(passed: int, n: int, calibration: Calibration) -> Estimate:
    """The share of rows that people would pass, from what a judge passed.

    The estimate is Rogan and Gladen's (1978, American Journal of Epidemiology 107:71-76): with the judge's share p, its
    sensitivity and its specificity, (p + specificity - 1) / (sensitivity + specificity - 1), kept within [0, 1]. The
    interval is Lang and Reiczigel's (2014, Preventive Veterinary Medicine 113:13-22), which carries the uncertainty of
    all three; for judges: Lee et al. 2025, arXiv:2511.21140. A judge that is no better than chance says nothing: its own
    share is given then, with the interval from 0 to 1.

    Args:
        passed: rows that the judge passed, other rows than those of `calibration`.
        n: all rows that it graded, at least 1.
        calibration: of the same judge.
    """
    share = passed / n
    p, size = (passed + Z**2 / 2) / (n + Z**2), n + Z**2
    se, positives = (calibration.accepted + 1) / (calibration.positives + 2), calibration.positives + 2
    sp, negatives = (calibration.rejected + 1) / (calibration.negatives + 2), calibration.negatives + 2
    informative = se + sp - 1
    if informative <= 0:
        return Estimate(value=share, low=0.0, high=1.0)
    middle = min(max((p + sp - 1) / informative, 0.0), 1.0)
    noise_se, noise_sp = se * (1 - se) / positives, sp * (1 - sp) / negatives
    shift = 2 * Z**2 * (middle * noise_se - (1 - middle) * noise_sp)
    variance = p * (1 - p) / size + middle**2 * noise_se + (1 - middle) ** 2 * noise_sp
    reach = Z * variance**0.5 / informative
    low, high = max(middle + shift - reach, 0.0), min(middle + shift + reach, 1.0)
    value = _rogan_gladen(share, calibration)
    value = middle if value is None else value
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _rogan_gladen(share: float, calibration: Calibration) -> float | None:
    """None where the rows show nothing of the one side, or a judge that is no better than chance."""
    se, sp = calibration.sensitivity, calibration.specificity
    if se is None or sp is None or se.value + sp.value <= 1:
        return None
    return min(max((share + sp.value - 1) / (se.value + sp.value - 1), 0.0), 1.0)


def _share(count: int, n: int) -> Estimate | None:
    if not n:
        return None
    low, high = wilson(count, n)
    return Estimate(value=count / n, low=low, high=high)


def _distances(grades: Sequence[Any], weights: Weights) -> Floats:
    """How much each pair of grades disagrees."""
    import numpy as np

    if weights == "none":
        return 1.0 - np.eye(len(grades))
    values = np.asarray(grades, dtype=float)
    return np.abs(values[:, None] - values[None, :]) ** (1 if weights == "linear" else 2)


def _kappa(tables: Floats, distances: Floats) -> Floats:
    """Of tables of shape (…, grades, grades); NaN where chance cannot disagree."""
    import numpy as np

    n = tables.sum(axis=(-2, -1))
    chance = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :] / n[..., None, None]
    expected = (chance * distances).sum(axis=(-2, -1))
    seen = (tables * distances).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - seen / expected, np.nan)


def _kappa_interval(table: Floats, distances: Floats) -> Estimate | None:
    import numpy as np

    value = float(_kappa(table, distances))
    if np.isnan(value):
        return None
    n = table.sum()
    by_chance = table.sum(axis=1)[:, None] * table.sum(axis=0)[None, :] / n**2
    agreed = np.diag((table.sum(axis=0) + table.sum(axis=1)) / (2 * n))
    random = np.random.default_rng(0)
    ends = []
    for extra in (0.0, by_chance, agreed):
        shares = (table + extra).ravel()
        drawn = random.multinomial(int(n), shares / shares.sum(), size=RESAMPLES).reshape(-1, *table.shape)
        ends.append(np.nanquantile(_kappa(drawn.astype(float), distances), (0.025, 0.975)))
    low, high = min(float(end[0]) for end in ends), max(float(end[1]) for end in ends)
    return Estimate(value=value, low=min(low, value), high=min(max(high, value), 1.0))
