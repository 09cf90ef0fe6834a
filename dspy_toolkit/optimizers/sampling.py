"""Choosing rows: always the same ones for the same seed, and as even over the answers as the rows allow."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dspy_toolkit.store import digest

if TYPE_CHECKING:
    import dspy
    import pandas as pd


def sample_rows(frame: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` rows of a split (all, when there are fewer), in an order that a hash of seed and row decides.

    A smaller sample is the beginning of a larger one, so that what the first cost is not paid again for the second.
    """
    order = sorted(range(len(frame)), key=lambda index: digest(seed, str(frame["_row"].iloc[index])))
    return frame.iloc[order[:count]]


def balanced(cases: list[dspy.Example], count: int, seed: int) -> list[dspy.Example]:
    """`count` examples in random order, the rarest answers as often as the most frequent while they last.

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


def shorter_half(cases: list[dspy.Example], least: int) -> list[dspy.Example]:
    """The shorter half of `cases` by the characters of all their fields, in the order they came; `least` at least.

    A demonstration costs its tokens again in every call that it is in.
    """
    order = sorted(
        range(len(cases)), key=lambda index: (sum(len(str(value)) for value in cases[index].values()), index)
    )
    return [cases[index] for index in sorted(order[: max(len(cases) // 2, least)])]


def _answer(case: dspy.Example) -> str:
    labels: dict[str, Any] = dict(case.labels().items())
    return json.dumps(labels, sort_keys=True, default=str)
