"""What else could be advised, on families that nobody has seen: the rows of the table that a score stands in.

    default            what the tool does when it is told nothing
    random             a measured configuration drawn at random (its expectation)
    best constant      the one configuration that is best on average over the known contexts
    nearest            the best of the known context that shares most fields
    ridge              quadratic ridge regression
    Gaussian process   scikit-learn's, with a fitted length scale
    ExtraTrees         scikit-learn's, of the loss as a whole
    surrogate          what is shipped: `landscape.Surrogate`

All are fitted to the known families alone, and judged by the measured regret on the held-out ones, in native units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.cells import Frame
from dspy_toolkit.advising.landscape import LOSS, TREES, Surrogate, folds, mean_over_seeds, quantiles
from dspy_toolkit.advising.situation import Situation

if TYPE_CHECKING:
    import numpy as np

    from dspy_toolkit.advising.advisor import Advisor

NAMES = ("default", "random", "best constant", "nearest", "ridge", "Gaussian process", "ExtraTrees", "surrogate")
GAUSSIAN_ROWS = 800
"""A Gaussian process is fitted to a sample of so many rows: its cost grows with their cube."""


def _regressor(name: str) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    if name == "ExtraTrees":
        return ExtraTreesRegressor(n_estimators=TREES, random_state=0)
    if name == "ridge":
        return make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), Ridge(1.0))
    kernel = ConstantKernel(1.0) * Matern(1.0, nu=2.5) + WhiteKernel(0.1)
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))


def picks(name: str, advisor: Advisor, known: Frame, table: Frame) -> Callable[[dict[str, str]], np.ndarray]:
    """A reference fitted to the known runs: context → weights over the configurations of `table`, (n,), with sum 1."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning

    columns = advisor.columns
    names = list(columns.configuration)
    means = mean_over_seeds(known, columns)

    def one(number: int) -> np.ndarray:
        chosen = np.zeros(len(table))
        chosen[number] = 1.0
        return chosen

    if name == "random":
        return lambda context: np.full(len(table), 1 / len(table))
    if name == "default":
        # Where the default is not allowed, the allowed one that shares most of it; of these, the nearest in numbers.
        def distance(row: dict[str, Any]) -> tuple[int, float]:
            differs = [each for each in names if row[each] != advisor.default[each]]
            numbers = [
                abs(np.log10(row[each] / advisor.default[each])) for each in differs if not isinstance(row[each], str)
            ]
            return len(differs), float(sum(numbers))

        rows = table[names].to_dict("records")
        closest = min(range(len(rows)), key=lambda number: distance(rows[number]))
        return lambda context: one(closest)
    if name in ("best constant", "nearest"):

        def best(part: Frame) -> int:
            centred = part[LOSS] - part.groupby([columns.family, *columns.context])[LOSS].transform("mean")
            averages = part.assign(**{LOSS: centred}).groupby(names)[LOSS].mean().reset_index()
            joined = table.merge(averages, on=names, how="left")[LOSS]
            return int(np.nanargmin(joined.fillna(np.inf).to_numpy()))

        if name == "best constant":
            constant = best(means)
            return lambda context: one(constant)

        def nearest(context: dict[str, str]) -> np.ndarray:
            shared: Any = sum((means[key] == value).astype(int) for key, value in context.items())
            return one(best(means[shared == shared.max()]))

        return nearest
    model = None if name == "surrogate" else _regressor(name)
    fitted = known
    if name == "Gaussian process" and len(means) > GAUSSIAN_ROWS:
        fitted = means.sample(GAUSSIAN_ROWS, random_state=0).assign(**{columns.seed: 0})
    with warnings.catch_warnings():
        # A length scale or a variance at the end of its range: the fit is what it is, and stands in the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        surrogate = Surrogate(fitted, columns, model)

    def by_model(context: dict[str, str]) -> np.ndarray:
        asked = table.assign(**context)
        return one(int(np.argmin(surrogate.predict(asked)[0])))

    return by_model


def regrets(advisor: Advisor, situation: Situation, names: tuple[str, ...] = NAMES) -> Frame:
    """Measured regret of each reference in each held-out context: columns reference, family, regret.

    Args:
        situation: which objective and which restriction; its context is replaced by each measured one.
    """
    import numpy as np
    import pandas as pd

    runs, columns = advisor.scored(situation), advisor.columns
    configurations = list(columns.configuration)
    table = runs[configurations].drop_duplicates().reset_index(drop=True)
    permitted = advisor.permits(situation)
    table = table[[permitted(row) for row in table.to_dict("records")]].reset_index(drop=True)
    runs = runs.merge(table, on=configurations, how="inner")
    found: list[dict[str, Any]] = []
    for known, held in folds(runs, columns):
        fitted = {name: picks(name, advisor, known, table) for name in names}
        for values, there in mean_over_seeds(held, columns).groupby([columns.family, *columns.context], sort=False):
            context = dict(zip(columns.context, values[1:], strict=True))
            losses = table.merge(there, on=configurations, how="left")[LOSS].to_numpy(dtype=float)
            best = np.nanmin(losses)
            for name, pick in fitted.items():
                weights = pick(context)
                there_ = ~np.isnan(losses)
                shares = weights[there_] / max(weights[there_].sum(), 1e-12)
                if weights[there_].sum() > 0:
                    regret = float((shares * (losses[there_] - best)).sum())
                    found.append({"reference": name, "family": values[0], "regret": regret})
    return pd.DataFrame(found)


def interval_over_families(frame: Frame, draws: int = 2_000, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) of the regret: a 95 % bootstrap interval that draws families, not contexts."""
    import numpy as np

    by_family = frame.groupby("family")["regret"].mean().to_numpy()
    random = np.random.default_rng(seed)
    means = by_family[random.integers(0, len(by_family), (draws, len(by_family)))].mean(axis=1)
    return float(by_family.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def coverage(advisor: Advisor, situation: Situation) -> tuple[float, int]:
    """(share of held-out runs inside the range, runs): the range is made of the errors on all other families."""
    import numpy as np

    from dspy_toolkit.advising.landscape import ADVISED, held_out_errors

    runs, columns = advisor.scored(situation), advisor.columns
    inside: list[bool] = []
    for known, held in folds(runs, columns, seed=1):
        if known[columns.family].nunique() < 2:
            continue
        low, high = quantiles(held_out_errors(known, columns, advisor.permits(situation)))
        surrogate = Surrogate(known, columns)
        for values, there in held.groupby(list(columns.context), sort=False):
            made = surrogate.table(dict(zip(columns.context, values, strict=True)), advisor.permits(situation))
            # A context that was never seen is predicted as it is, not averaged over.
            asked = made[list(columns.configuration)].drop_duplicates()
            asked = asked.assign(**dict(zip(columns.context, values, strict=True)))
            asked["predicted_"], asked["spread_"] = surrogate.predict(asked)
            asked = asked.nsmallest(ADVISED, "predicted_")
            joined = there.merge(asked, on=[*columns.context, *columns.configuration], how="inner")
            errors = (joined[LOSS] - joined["predicted_"]) / joined["spread_"]
            inside.extend(((errors >= low) & (errors <= high)).tolist())
    return (float(np.mean(inside)), len(inside)) if inside else (float("nan"), 0)
