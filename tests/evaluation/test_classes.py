"""Accuracy, macro-F1, precision, recall and confusion, by hand, against scikit-learn, and as laws."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Literal, Optional

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from dspy_toolkit.evaluation import ClassReport, class_reports
from dspy_toolkit.gate.intervals import wilson

COLOURS = ["red", "green", "blue"]
TYPES = {"label": Literal["red", "green", "blue"]}


def table(expected: list[Any], answered: list[Any], groups: list[str] | None = None) -> pd.DataFrame:
    """A per-row table; an answer "–" is a row without any."""
    return pd.DataFrame(
        {
            "_group": groups or [str(place) for place in range(len(expected))],
            "expected": [json.dumps({"label": value}) for value in expected],
            "prediction": ["null" if value == "–" else json.dumps({"label": value}) for value in answered],
        }
    )


def report(
    expected: list[Any], answered: list[Any], types: Any = TYPES, groups: list[str] | None = None
) -> ClassReport:
    [found] = class_reports(table(expected, answered, groups), ["label"], types)
    return found


def test_by_hand() -> None:
    seen = report(["red"] * 4 + ["green"] * 2, ["red", "red", "red", "green", "green", "–"])
    assert (seen.output, seen.n, seen.accuracy.value) == ("label", 6, pytest.approx(4 / 6))
    red, green = seen.classes
    assert (red.value, red.support, red.predicted, red.f1) == ("red", 4, 3, pytest.approx(6 / 7))
    assert (
        red.precision is not None
        and red.precision.value == 1
        and (red.precision.low, red.precision.high) == wilson(3, 3)
    )
    assert red.recall is not None and (red.recall.low, red.recall.high) == wilson(3, 4)
    assert (green.support, green.predicted, green.f1) == (2, 2, 0.5)
    assert seen.macro_f1.value == pytest.approx((6 / 7 + 0.5) / 2)
    assert seen.confusion == ((3, 1, 0), (0, 1, 1)), "the last column is no answer"


def test_a_class_that_is_only_answered_and_one_that_is_nowhere() -> None:
    seen = report(["red", "red"], ["red", "blue"])
    assert [(one.value, one.support, one.predicted) for one in seen.classes] == [("red", 2, 1), ("blue", 0, 1)]
    assert seen.classes[1].recall is None and seen.classes[1].precision is not None
    assert seen.macro_f1.value == pytest.approx((2 / 3 + 0) / 2)


def test_answers_are_read_as_exact_match_reads_them() -> None:
    assert report(["red", "green"], [" RED ", "purple"]).confusion == ((1, 0, 0), (0, 0, 1))
    assert report(["red"], [["red"]]).confusion == ((0, 1),)


def test_choices_of_every_type() -> None:
    class Size(Enum):
        SMALL = 1
        LARGE = 2

    assert [one.value for one in report([1, 2], [2, 2], {"label": Size}).classes] == [1, 2]
    assert report([True, False], [True, True], {"label": bool}).confusion == ((0, 1, 0), (0, 1, 0))
    assert report([1, 2], [True, 2], {"label": Literal[1, 2]}).confusion == ((0, 0, 1), (0, 1, 0)), "True is not 1"
    optional = report([None, "red"], [None, "–"], {"label": Optional[Literal["red", "blue"]]})
    assert [one.value for one in optional.classes] == ["red", None]
    assert optional.confusion == ((0, 0, 1), (0, 1, 0))


def test_an_output_that_is_no_choice_has_no_classes() -> None:
    rows = table(["a"], ["a"])
    assert class_reports(rows, ["label"], {"label": str}) == ()
    assert class_reports(rows, ["label"], {}) == ()
    assert class_reports(table([None], ["red"]), ["label"], {"label": Literal["red"]})[0].classes[0].support == 0


answers = st.sampled_from([*COLOURS, "–"])
some_rows = st.lists(st.tuples(st.sampled_from(COLOURS), answers), min_size=1, max_size=60)


@settings(deadline=None, max_examples=40)
@given(some_rows)
def test_the_books_balance_and_scikit_learn_agrees(rows: list[tuple[str, str]]) -> None:
    expected, answered = map(list, zip(*rows, strict=True))
    seen = report(expected, answered)
    assert sum(map(sum, seen.confusion)) == seen.n == len(rows)
    assert [sum(row) for row in seen.confusion] == [one.support for one in seen.classes]
    right = sum(row[place] for place, row in enumerate(seen.confusion))
    assert seen.accuracy.value == pytest.approx(right / len(rows))
    labels = [one.value for one in seen.classes]
    theirs = precision_recall_fscore_support(expected, answered, labels=labels, zero_division=0)
    ours = [
        (one.precision.value if one.precision else 0, one.recall.value if one.recall else 0, one.f1, one.support)
        for one in seen.classes
    ]
    assert pytest.approx(np.array(theirs, dtype=float)) == np.array(ours).T
    # The row of those that are of no class is empty.
    whole = confusion_matrix(expected, answered, labels=[*labels, "–"])
    assert [list(row) for row in seen.confusion] == whole[:-1].tolist()
    assert 0 <= seen.macro_f1.low <= seen.macro_f1.value <= seen.macro_f1.high <= 1
    for one in seen.classes:
        for share in (one.precision, one.recall):
            assert share is None or 0 <= share.low <= share.value <= share.high <= 1


@settings(deadline=None, max_examples=40)
@given(some_rows, st.randoms())
def test_the_order_of_the_rows_says_nothing(rows: list[tuple[str, str]], random: Any) -> None:
    first = report(*map(list, zip(*rows, strict=True)))
    random.shuffle(rows)
    assert report(*map(list, zip(*rows, strict=True))) == first


def test_copies_of_a_row_are_no_more_evidence() -> None:
    expected, answered = ["red", "green"] * 10, ["red", "green"] * 8 + ["green", "green"] * 2
    once = report(expected, answered, groups=[str(place) for place in range(20)])
    copied = report(expected * 5, answered * 5, groups=[str(place) for place in range(20)] * 5)
    alone = report(expected * 5, answered * 5)
    assert copied.macro_f1.value == pytest.approx(once.macro_f1.value)
    width, once_width = copied.macro_f1.high - copied.macro_f1.low, once.macro_f1.high - once.macro_f1.low
    assert width == pytest.approx(once_width, rel=0.1)
    assert alone.macro_f1.high - alone.macro_f1.low < 0.7 * width
    recall, alone_recall = copied.classes[0].recall, alone.classes[0].recall
    assert recall is not None and alone_recall is not None
    assert recall.high - recall.low > 1.5 * (alone_recall.high - alone_recall.low)


def test_a_program_without_a_fault_is_not_certain() -> None:
    seen = report(COLOURS * 10, COLOURS * 10)
    assert seen.macro_f1.value == seen.macro_f1.high == 1
    assert 0.85 < seen.macro_f1.low < 0.99


@pytest.mark.soak
def test_the_interval_of_macro_f1_holds_the_truth() -> None:
    """Six classes of unequal size, 120 rows, 70 % right: 95 % within three standard errors of 200 draws."""
    random = np.random.default_rng(3)
    names = [f"class {place}" for place in range(6)]
    types = {"label": Literal[tuple(names)]}
    shares = np.array([0.35, 0.25, 0.15, 0.1, 0.1, 0.05])
    said = np.full((6, 7), 0.3 / 6) + np.pad(np.eye(6), ((0, 0), (0, 1))) * (0.7 - 0.05)
    joint = shares[:, None] * said
    truth = (2 * np.diag(joint) / (joint.sum(axis=1) + joint[:, :-1].sum(axis=0))).mean()
    inside = 0
    for _ in range(200):
        expected = random.choice(6, 120, p=shares)
        answered = [random.choice(7, p=said[row]) for row in expected]
        seen = report([names[row] for row in expected], [[*names, "–"][row] for row in answered], types)
        inside += seen.macro_f1.low <= truth <= seen.macro_f1.high
    assert inside / 200 > 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5
