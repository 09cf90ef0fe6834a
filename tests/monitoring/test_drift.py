"""Drift is seen where it is, and not where it is not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.monitoring.calibration import calibration
from dspy_toolkit.monitoring.drift import FEWEST, find_drift

WORDS = [
    "red",
    "green",
    "blue",
    "house",
    "tree",
    "river",
    "stone",
    "cloud",
    "bread",
    "salt",
    "ship",
    "road",
    "light",
    "glass",
    "paper",
    "song",
]
OTHERS = [
    "kernel",
    "socket",
    "thread",
    "mutex",
    "packet",
    "cache",
    "lambda",
    "vector",
    "tensor",
    "shader",
    "buffer",
    "cursor",
    "daemon",
]


def texts(rng: random.Random, n: int, words: list[str] = WORDS, length: tuple[int, int] = (4, 9)) -> list[str]:
    return [" ".join(rng.choices(words, k=rng.randint(*length))) for _ in range(n)]


def test_the_same_source_has_not_drifted() -> None:
    alarms = 0
    for seed in range(40):
        rng = random.Random(seed)
        before = {"text": texts(rng, 200), "label": rng.choices("abc", k=200)}
        now = {"text": texts(rng, 120), "label": rng.choices("abc", k=120)}
        alarms += any(each.drifted for each in find_drift(before, now, seed=seed))
    assert alarms <= 1


def test_each_kind_of_drift_is_named() -> None:
    rng = random.Random(1)
    before = {"text": texts(rng, 200), "label": rng.choices("abc", k=200)}
    longer = find_drift(before, {"text": texts(rng, 100, length=(20, 30))})
    assert {each.kind for each in longer if each.drifted} == {"length"}
    other = find_drift(before, {"text": texts(rng, 100, WORDS[:4] + OTHERS)})
    assert "new words" in {each.kind for each in other if each.drifted}
    [labels] = [each for each in find_drift(before, {"label": rng.choices("aab", k=100)}) if each.drifted]
    assert (labels.field, labels.kind) == ("label", "values") and "label, values" in labels.sentence


@given(st.integers(0, FEWEST - 1))
def test_of_few_rows_nothing_is_said(n: int) -> None:
    assert find_drift({"text": ["a b"] * 200}, {"text": ["x y z"] * n}) == ()


def test_a_column_without_values_or_on_one_side_only_is_passed_over() -> None:
    assert find_drift({"text": [None] * 100, "gone": ["a"] * 100}, {"text": ["a"] * 100}) == ()


def test_calibration_tells_overconfidence_from_chance() -> None:
    rng = random.Random(2)
    sure = [rng.random() for _ in range(400)]
    good = calibration(sure, [float(rng.random() < each) for each in sure])
    assert good is not None and not good.off and abs(good.confidence - good.right) < 0.1
    bad = calibration([0.95] * 200, [float(rng.random() < 0.6) for _ in range(200)])
    assert bad is not None and bad.off and 0.25 < bad.error < 0.45
    assert calibration([0.5] * 10, [1.0] * 10) is None
