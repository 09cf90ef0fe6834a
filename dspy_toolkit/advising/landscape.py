"""A landscape: the runs that were measured, and a surrogate that ranks configurations by them.

The surrogate is scikit-learn's ExtraTrees over what a person can know (the context) and the configuration, beside the
configuration's mean. It ranks measured
configurations only, so that nothing is interpolated that was never run. What is not known is averaged over. The range of what
to expect is conformal: the quantiles of the errors that surrogates made on families that they had not seen.

Covered: preparing runs, fitting, ranking, ranges, measured regret. Not covered: what is worth minimizing in a situation, which
the project says (`Advisor.objective`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.cells import Frame, Value
from dspy_toolkit.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np

LOSS = "loss_"
"""The column with what is minimized, in the project's native unit."""
TREES = 60
LEAF = 4
"""Measured cells in a leaf, at least: fewer follow the noise of single cells."""
ADVISED = 3
"""Configurations of each held-out context that say how wrong a prediction is: those that would be advised."""
FOLDS = 5
COVER = 0.8
"""Of what runs a range promises to cover."""
PREDICTED_RUNS = 1.0
"""How many of the user's own runs a prediction counts as."""


@dataclass(frozen=True)
class Columns:
    """The columns of a landscape's runs."""

    context: tuple[str, ...]
    """What a person can know; each is also a field of the situation."""
    configuration: tuple[str, ...]
    outcomes: tuple[str, ...]
    logarithmic: tuple[str, ...] = ()
    """Configuration columns whose ratios count, such as a learning rate."""
    family: str = "family"
    seed: str = "seed"


@dataclass(frozen=True)
class Ranked:
    """One configuration as the surrogate sees it in a situation."""

    configuration: Mapping[str, Value]
    loss: float
    """Predicted, in the native unit; lower is better."""
    spread: float
    """How far the trees are apart; the range is a multiple of it."""


def check_runs(runs: Frame, columns: Columns, where: str) -> Frame:
    """Raise DatasetError unless the runs have the columns that the landscape needs."""
    wanted = (*columns.context, *columns.configuration, *columns.outcomes, columns.family, columns.seed)
    if missing := [name for name in wanted if name not in runs.columns]:
        raise DatasetError(f"{where} has no column {', '.join(missing)}. Measure the landscape anew.")
    if runs.empty:
        raise DatasetError(f"{where} has no runs. Measure the landscape anew.")
    return runs


def features(frame: Frame, columns: Columns, like: Frame) -> np.ndarray:
    """(rows, features): choices as 0 and 1 for each level that `like` has, numbers as they are or as logarithms."""
    import numpy as np

    made = []
    for name in (*columns.context, *columns.configuration):
        if like[name].dtype.kind in "ifb":
            values = frame[name].to_numpy(dtype=float)
            made.append(np.log10(values) if name in columns.logarithmic else values)
        else:
            made.extend((frame[name] == level).to_numpy(dtype=float) for level in sorted(like[name].unique()))
    return np.column_stack(made)


class Surrogate:
    """What runs that have a `loss_` column say about a configuration in a context.

    A loss is a sum of three: how hard the context is, how good the configuration is on average, and what they do to each other. The
    first and the third are ExtraTrees, the second is a mean. Trees that had to learn all three at once ranked worse than the one best
    constant on families that they had not seen; so they are left with what differs from it.
    """

    def __init__(
        self, runs: Frame, columns: Columns, model: Any = None, seed: int = 0, own: Frame | None = None
    ) -> None:
        """Fit.

        Args:
            runs: what was measured, with a `loss_` column.
            model: a regressor of scikit-learn's that learns the loss as a whole instead, for comparison.
            own: the user's own runs, with a `loss_` column; they correct what is predicted in their contexts.
        """
        from sklearn.ensemble import ExtraTreesRegressor

        self.columns, self.seed = columns, seed
        self.runs = made = mean_over_seeds(runs, columns)
        self._sizes, self._model, self._own = runs, model, own
        # Where all trees agree, an error is still to be expected.
        self._floor = 0.05 * float(made[LOSS].std() or 0.0) + 1e-9
        given = features(made, columns, made)
        if model is not None:
            model.fit(given, made[LOSS].to_numpy())
            return
        places, names = [columns.family, *columns.context], list(columns.configuration)
        mean = made.groupby(places, sort=False)[LOSS].transform("mean")
        centred = made[LOSS] - mean
        self._effects = made.assign(effect_=centred).groupby(names, sort=False)["effect_"].mean().reset_index()
        left = centred - self._effect_of(made)
        self._level = ExtraTreesRegressor(n_estimators=TREES, random_state=seed)
        contexts = made.assign(level_=mean).drop_duplicates(places)
        self._level.fit(self._contexts(contexts), contexts["level_"].to_numpy())
        self._rest = ExtraTreesRegressor(n_estimators=TREES, min_samples_leaf=LEAF, random_state=seed)
        self._rest.fit(given, left.to_numpy())

    def _contexts(self, table: Frame) -> np.ndarray:
        return features(table, replace(self.columns, configuration=()), self.runs)

    def _effect_of(self, table: Frame) -> np.ndarray:
        names = list(self.columns.configuration)
        return table[names].merge(self._effects, on=names, how="left")["effect_"].to_numpy()

    def predict(self, table: Frame) -> tuple[np.ndarray, np.ndarray]:
        """(loss, spread) of contexts with configurations; the spread is the trees' deviation, never near 0."""
        import numpy as np

        given = features(table, self.columns, self.runs)
        if self._model is not None:
            return self._model.predict(given), np.ones(len(given))
        places = self._contexts(table)
        levels = np.stack([tree.predict(places) for tree in self._level.estimators_])
        rests = np.stack([tree.predict(given) for tree in self._rest.estimators_])
        spread = np.sqrt(levels.var(0) + rests.var(0)) + self._floor
        return levels.mean(0) + self._effect_of(table) + rests.mean(0), spread

    def table(self, context: Mapping[str, str], allowed: Callable[[Mapping[str, Any]], bool]) -> Frame:
        """The allowed measured configurations in every measured context that fits, with `loss_` and `spread_` predicted."""
        names = list(self.columns.configuration)
        configurations = self.runs[names].drop_duplicates()
        configurations = configurations[[allowed(row) for row in configurations.to_dict("records")]]
        return matching(self._ground, self.columns, context).merge(configurations, on=names)

    @functools.cached_property
    def _ground(self) -> Frame:
        """Every measured configuration in every measured context, predicted once: two forests are asked, tree by tree."""
        contexts = self.runs[list(self.columns.context)].drop_duplicates()
        made = contexts.merge(self.runs[list(self.columns.configuration)].drop_duplicates(), how="cross")
        made[LOSS], made["spread_"] = self.predict(made)
        return made

    def rank(self, context: Mapping[str, str], allowed: Callable[[Mapping[str, Any]], bool]) -> list[Ranked]:
        """The allowed measured configurations in the context, best first; unknown parts of it are averaged over."""
        names = list(self.columns.configuration)
        made = self.table(context, allowed)
        if made.empty:
            return []
        mean = made.groupby(names, sort=False)[[LOSS, "spread_"]].mean().reset_index()
        mean = self._corrected(mean, context).sort_values(LOSS, kind="stable")
        return [
            Ranked({name: _plain(row[name]) for name in names}, float(row[LOSS]), float(row["spread_"]))
            for row in mean.to_dict("records")
        ]

    def _corrected(self, mean: Frame, context: Mapping[str, str]) -> Frame:
        """Predictions drawn towards the user's own runs, the more the more there are.

        Another task is harder or easier as a whole: the mean difference moves all predictions, and only what is left of a
        configuration's own difference moves it against the others.
        """
        if self._own is None or self._own.empty:
            return mean
        names = list(self.columns.configuration)
        there = matching(self._own, self.columns, context).groupby(names, sort=False)[LOSS].agg(["mean", "count"])
        joined = mean.merge(there.reset_index(), on=names, how="left")
        differs = joined["mean"] - joined[LOSS]
        if differs.notna().any():
            count, shift = joined["count"].fillna(0), differs.mean()
            moved = shift + (differs - shift).fillna(0) * count / (count + PREDICTED_RUNS)
            mean = mean.assign(**{LOSS: (joined[LOSS] + moved).to_numpy()})
        return mean

    @functools.cached_property
    def standard_error(self) -> float:
        """Of a measured cell's mean over its seeds: the pooled deviation between seeds over the root of their number."""
        import numpy as np

        keys = [self.columns.family, *self.columns.context, *self.columns.configuration]
        groups = self._sizes.groupby(keys, sort=False)[LOSS]
        counts, variances = groups.count(), groups.var()
        repeated = counts > 1
        if not repeated.any():
            return 0.0
        pooled = float(
            np.average(variances[repeated].clip(upper=variances[repeated].quantile(0.95)), weights=counts[repeated] - 1)
        )
        return float(np.sqrt(pooled / counts[repeated].mean()))


def mean_over_seeds(runs: Frame, columns: Columns) -> Frame:
    """One row for each family, context and configuration, with the mean loss."""
    keys = [columns.family, *columns.context, *columns.configuration]
    return runs.groupby(keys, sort=False).agg(**{LOSS: (LOSS, "mean")}).reset_index()


def matching(runs: Frame, columns: Columns, context: Mapping[str, str]) -> Frame:
    """The runs whose context is the given one; a part that is not given, or that was never measured, fits all."""
    for name in columns.context:
        if name in context and (here := runs[name] == context[name]).any():
            runs = runs[here]
    return runs


def measured_loss(
    runs: Frame, columns: Columns, context: Mapping[str, str], configuration: Mapping[str, Value]
) -> float:
    """The mean measured loss of a configuration in a context (over families, seeds and what is not known)."""
    there = matching(runs, columns, context)
    for name in columns.configuration:
        there = there[there[name] == configuration[name]]
    return float(there[LOSS].mean())


def held_out_errors(
    runs: Frame, columns: Columns, allowed: Callable[[Mapping[str, Any]], bool], seed: int = 0
) -> np.ndarray:
    """Measured minus predicted loss, in spreads, of what surrogates advise in contexts of families that they have not seen.

    One number for each run (seed) of the three best-ranked configurations of each held-out context.
    """
    import numpy as np

    columns_of = [*columns.context, *columns.configuration]
    errors = []
    for kept, held in folds(runs, columns, seed):
        surrogate = Surrogate(kept, columns, seed=seed)
        contexts = held[list(columns.context)].drop_duplicates()
        configurations = kept[list(columns.configuration)].drop_duplicates()
        configurations = configurations[[allowed(row) for row in configurations.to_dict("records")]]
        table = contexts.merge(configurations, how="cross")
        if table.empty:
            continue
        predicted, spread = surrogate.predict(table)
        table = table.assign(predicted_=predicted, spread_=spread)
        best = table.sort_values("predicted_", kind="stable").groupby(list(columns.context), sort=False).head(ADVISED)
        joined = held.merge(best, on=columns_of, how="inner")
        errors.append(((joined[LOSS] - joined["predicted_"]) / joined["spread_"]).to_numpy())
    return np.concatenate(errors) if errors else np.array([])


def folds(runs: Frame, columns: Columns, seed: int = 0, count: int = FOLDS):
    """(kept, held out) by families, each family held out once."""
    import numpy as np

    families = np.array(sorted(runs[columns.family].unique()))
    order = np.random.default_rng(seed).permutation(len(families))
    for part in np.array_split(order, min(count, len(families))):
        held = runs[columns.family].isin(families[part])
        if 0 < held.sum() < len(runs):
            yield runs[~held], runs[held]


def quantiles(errors: Sequence[float] | np.ndarray, cover: float = COVER) -> tuple[float, float]:
    """The conformal interval of the errors: (low, high) that cover `cover` of new ones, with the finite-sample correction.

    Source: Vovk, Gammerman and Shafer 2005; split conformal prediction, both tails alike.
    """
    import numpy as np

    ordered = np.sort(np.asarray(errors, dtype=float))
    if not len(ordered):
        return float("-inf"), float("inf")
    tail = (1 - cover) / 2
    count = len(ordered)
    low = max(int(np.floor(tail * (count + 1))) - 1, 0)
    high = min(int(np.ceil((1 - tail) * (count + 1))) - 1, count - 1)
    return float(ordered[low]), float(ordered[high])


def _plain(value: Any) -> Value:
    """A NumPy scalar as Python's."""
    return value.item() if hasattr(value, "item") else value
