"""Sampling rows: reproducible for a seed, and balanced over the answers as far as the rows allow."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dspy_toolkit.store import digest

if TYPE_CHECKING:
    import dspy
    import pandas as pd


def sample_rows(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows of a split (all, when there are fewer), in an order that a hash of the row decides.

    A smaller sample is the beginning of a larger one, so the replies for the smaller one are in the cache for the
    larger.
    """
    order = sorted(range(len(frame)), key=lambda index: digest(0, str(frame["_row"].iloc[index])))
    return frame.iloc[order[:count]]


def balanced(cases: list[dspy.Example], count: int, seed: int) -> list[dspy.Example]:
    """`count` examples in random order, every answer equally often while its examples last.

    Where every answer is different (free text, numbers) this is a plain random sample.
    """
    import random

    rng = random.Random(seed)
    groups: defaultdict[str, list[dspy.Example]] = defaultdict(list)
    for case in rng.sample(cases, len(cases)):
        groups[_answer(case)].append(case)
    chosen: list[dspy.Example] = []
    while len(chosen) < min(count, len(cases)):
        names = [name for name, members in groups.items() if members]
        for name in rng.sample(names, len(names))[: count - len(chosen)]:
            chosen.append(groups[name].pop())
    rng.shuffle(chosen)
    return chosen


def _answer(case: dspy.Example) -> str:
    labels: dict[str, Any] = dict(case.labels().items())
    return json.dumps(labels, sort_keys=True, default=str)
