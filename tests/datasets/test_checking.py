"""Checking: what fits a type, what every bad row is told, and that all of them are told."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel, Field

from dspy_toolkit.datasets import DatasetSpec, check_rows, from_records
from dspy_toolkit.errors import DatasetError

Label = Literal["positive", "negative"]


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Proposal(BaseModel):
    rank: int = Field(gt=0)
    note: str | None = None


class Opaque:
    pass


def fit(annotation: Any, value: Any) -> Any:
    spec = DatasetSpec(source="x.csv", inputs=("x",))
    frame, bad = check_rows(from_records([{"x": value}]), spec, {"x": annotation}, False)
    assert bad == []
    return frame["x"].iloc[0]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Label, "positive", "positive"),
        (Label, " positive ", "positive"),
        (Literal[1, 2], "1", 1),
        (Literal["1"], 1, "1"),
        (Color, "red", "red"),
        (bool, "yes", True),
        (bool, False, False),
        (int, "17", 17),
        (int, np.int64(17), 17),
        (float, "0.5", 0.5),
        (float, 1, 1.0),
        (str, "", ""),
        (str, 7, "7"),
        (str | None, None, None),
        (float | None, float("nan"), None),
        (int | None, pd.NA, None),
        (list[str], '["a", "b"]', ["a", "b"]),
        (list[int], np.array([1, 2]), [1, 2]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Proposal, '{"rank": 8}', {"rank": 8, "note": None}),
        (Any, None, None),
    ],
)
def test_fits(annotation: Any, value: Any, expected: Any) -> None:
    found = fit(annotation, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Label, "posotive", 'x.csv, row 1: x "posotive" is not one of positive, negative.'),
        (Label | None, "posotive", 'x.csv, row 1: x "posotive" is not one of positive, negative.'),
        (Color, "green", 'x.csv, row 1: x "green" is not one of red, blue.'),
        (bool, "perhaps", 'x.csv, row 1: x "perhaps" is not true or false.'),
        (int, "1.5", 'x.csv, row 1: x "1.5" is not a whole number.'),
        (int, [1], "x.csv, row 1: x [1] is not a whole number."),
        (float, "inf", 'x.csv, row 1: x "inf" is not a finite number.'),
        (str, None, "x.csv, row 1: x is missing."),
        (Label, "a\nb" * 40, 'x.csv, row 1: x "' + ("a\\nb" * 20) + '…" is not one of positive, negative.'),
        (str, "\ud800", 'x.csv, row 1: x "\\ud800" '),
        (list[str], "a", 'x.csv, row 1: x "a" is not list[str]: Input should be a valid list.'),
        (Proposal, {"rank": 0}, "x.csv, row 1: x {'rank': 0} is not Proposal: rank: Input should be greater than 0."),
    ],
)
def test_does_not_fit(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        fit(annotation, value)
    first, last = str(caught.value).splitlines()
    assert first.startswith(message)
    assert last == "Fix the row, or set DSPY_TOOLKIT_DATA__DROP_BAD_ROWS=true."


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (Label, ["positive", " negative"], "no"),
        (int, [1, "2", " 3 "], "x"),
        (float, [1, 0.5, "2"], "inf"),
        (str | None, ["a", None, 7], [1]),
        (list[str], [["a"], '["b"]'], "c"),
        (Proposal, [{"rank": 1}, '{"rank": 2}'], {"rank": 0}),
    ],
)
def test_a_value_fits_whatever_stands_beside_it(annotation: Any, good: list[Any], bad: Any) -> None:
    """A column that fits as it stands is checked at once, another one value by value."""
    spec = DatasetSpec(source="x.csv", inputs=("x",))
    alone = [fit(annotation, value) for value in good]
    for values, problems in ((good, 0), ([bad, *good], 1), ([*good, bad], 1)):
        frame, lines = check_rows(from_records({"x": value} for value in values), spec, {"x": annotation}, True)
        assert len(lines) == problems
        found = frame["x"].tolist()
        assert found == alone
        assert list(map(type, found)) == list(map(type, alone))


def test_many_choices_are_cut_short() -> None:
    many = Literal[tuple(f"c{i}" for i in range(30))]  # type: ignore[valid-type]
    with pytest.raises(DatasetError, match=r"c19, … \(30 in all\)"):
        fit(many, "d")


def rows() -> pd.DataFrame:
    return from_records(
        [{"text": "a", "label": "good"}, {"text": None, "label": "bad"}, {"text": "c", "label": "positive"}],
        [2, 17, 40],
    )


SPEC = DatasetSpec(source="x.csv", inputs=("text",), outputs=("label",))
FIELDS = {"text": str, "label": Label}


def test_all_bad_rows_are_listed_in_file_order() -> None:
    with pytest.raises(DatasetError) as caught:
        check_rows(rows(), SPEC, FIELDS, False, origin="data/y.csv")
    assert str(caught.value).splitlines() == [
        'data/y.csv, row 2: label "good" is not one of positive, negative.',
        "data/y.csv, row 17: text is missing.",
        'data/y.csv, row 17: label "bad" is not one of positive, negative.',
        "Fix these 2 rows, or set DSPY_TOOLKIT_DATA__DROP_BAD_ROWS=true.",
    ]


def test_bad_rows_can_be_dropped() -> None:
    frame, bad = check_rows(rows(), SPEC, FIELDS, True)
    assert frame.index.tolist() == [40]
    assert len(bad) == 3


def test_nothing_left_after_dropping() -> None:
    with pytest.raises(DatasetError, match="no row that fits"):
        check_rows(rows().iloc[:2], SPEC, FIELDS, True)


def test_unknown_columns_name_the_nearest() -> None:
    for changed in ({"inputs": ("txt",)}, {"group": "txt"}, {"stratify": "txt"}):
        with pytest.raises(DatasetError, match=r'x\.csv has no column "txt"\. Did you mean text\?'):
            check_rows(rows(), SPEC.model_copy(update=changed), FIELDS, False)


def test_empty_table() -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        check_rows(rows().iloc[:0], SPEC, FIELDS, False)


def test_rows_of_any_frame_are_counted_from_one() -> None:
    with pytest.raises(DatasetError, match="row 2: "):
        check_rows(pd.DataFrame({"text": ["a", "b"], "label": ["positive", "no"]}), SPEC, FIELDS, False)


def test_a_type_that_no_file_can_hold() -> None:
    with pytest.raises(DatasetError, match='Column "x" has the type Opaque'):
        fit(Opaque, "a")


@pytest.mark.parametrize("value", [b"\xff", "\ud800"])
def test_a_group_that_json_cannot_hold_is_named(value: Any) -> None:
    frame = from_records([{"text": "a", "label": "b", "page": 1}, {"text": "a", "label": "b", "page": value}])
    spec = DatasetSpec(source="x.parquet", inputs=("text",), outputs=("label",), group="page")
    with pytest.raises(DatasetError, match=r"x\.parquet, row 2: page .* cannot be written as JSON"):
        check_rows(frame, spec, {"text": str, "label": str}, drop_bad_rows=False)
