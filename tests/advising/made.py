"""A landscape whose best configuration is known: a rate that has to fit how hard the data are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dspy_toolkit.advising.landscape import LOSS, Columns

COLUMNS = Columns(context=("kind",), configuration=("rate", "way"), outcomes=("score",), logarithmic=("rate",))
BEST = {"easy": 0.1, "hard": 0.001}


def runs(families: int = 8, seeds: int = 3, noise: float = 0.05) -> pd.DataFrame:
    """Loss: the distance of the rate's logarithm from the best, more for the way `b`, and noise."""
    random = np.random.default_rng(0)
    rows = []
    for family in range(families):
        kind = ("easy", "hard")[family % 2]
        for rate in (0.1, 0.01, 0.001):
            for way in ("a", "b"):
                loss = abs(np.log10(rate / BEST[kind])) + 0.5 * (way == "b")
                rows.extend(
                    {"family": f"f{family}", "kind": kind, "seed": seed, "rate": rate, "way": way, "score": 0.0}
                    | {LOSS: loss + random.normal(0, noise)}
                    for seed in range(seeds)
                )
    return pd.DataFrame(rows)
