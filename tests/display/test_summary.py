"""What is said of a run."""

from __future__ import annotations

import pytest

from dspy_toolkit.datasets import DatasetReport
from dspy_toolkit.display.summary import split_in_words


@pytest.mark.parametrize(("sealed", "gain"), [(130, 12), (294, 8), (9_000, 3)])
def test_the_split_says_what_the_sealed_rows_can_show(sealed: int, gain: int) -> None:
    splits = {"train": 40, "val": 30, "sealed": sealed}
    report = DatasetReport(rows=70 + sealed, splits=splits, groups=splits, classes={}, lengths={})
    said = split_in_words(report, 0.05)
    assert f"40 to learn from, 30 to choose by, {sealed:,} sealed to prove with" in said
    assert f"true gain is {gain} points, a first opening shows 16" in said
