"""Metrics over sets and JSON: what they score, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import pytest
from pydantic import BaseModel

from dspy_toolkit.metrics import json_fields, set_overlap
from tests.metrics.cases import answer, example


class Tag(Enum):
    NEW = "new"


class Item(BaseModel):
    name: str
    price: float
    tags: set[str] = set()


@dataclass
class Pair:
    left: int
    right: int


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        (["a", "b"], ["b", "a"], 1),
        (["a", "b"], ["B ", "a"], 1),
        (["a", "b", "c"], ["a", "b", "d"], 0.5),
        ({"a", "b"}, ("a",), 0.5),
        ("a, b; c", "c\nb\na", 1),
        ("a, b", "- a\n- b\n", 1),
        ("a, b", "1. a\n2) b", 1),
        ("a, b", '["a", "b"]', 1),
        ([1, 2], "1, 2", 1),
        ([1.0, 2], [2, 1], 1),
        (["-5"], "-5", 1),
        ([Tag.NEW], "new", 1),
        ([{"x": 1, "y": 2}], [{"y": 2, "x": 1}], 1),
        ({"x": 1, "y": 2}, {"x": 1, "y": 3}, 1 / 3),
        ([], [], 1),
        (None, [], 1),
        ("", [], 1),
        (["a"], [], 0),
        ([], ["a"], 0),
        ([["a", "b"]], [["b", "a"]], 0),
    ],
)
def test_set_overlap(expected: object, got: object, value: float) -> None:
    assert set_overlap(example(tags=expected), answer(tags=got)).value == pytest.approx(value)


def test_set_overlap_splits_where_it_is_told_to() -> None:
    case = example(tags=["New York, NY", "Rome"])
    assert set_overlap(case, answer(tags="Rome | New York, NY"), separators="|").value == 1
    assert set_overlap(case, answer(tags="Rome | New York, NY")).value == 0


def test_set_overlap_says_what_is_missing_and_what_superfluous() -> None:
    result = set_overlap(example(tags=["a", "B", "c"], other=["x"]), answer(tags=["a", "d"]))
    assert result.value == pytest.approx(1 / 4 / 2)
    assert result.feedback == "tags: missing 'B', 'c'; superfluous 'd'. other: expected ['x'], got no answer."
    many = set_overlap(example(tags=[f"t{n:02}" for n in range(40)]), answer(tags=["t00"])).feedback
    assert many.endswith("'t12' and 27 more.")


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        ({"a": 1, "b": "x"}, {"a": 1.0, "b": " X "}, 1),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, 1 / 2),
        ({"a": 1, "b": 2}, {"a": 1}, 1 / 2),
        ({"a": 1}, {"a": 1, "b": 2}, 1 / 2),
        ({"a": 1}, '{"a": 1}', 1),
        ('{"a": 1}', {"a": 1}, 1),
        ({"a": 1}, 'Here it is:\n```json\n{"a": 1}\n```\nDone.', 1),
        ({"a": 1}, "a is 1", 0),
        ({"a": 1}, None, 0),
        ({"a": True}, {"a": 1}, 0),
        ({"a": "1"}, {"a": 1}, 0),
        ({"a": None}, {"a": None}, 1),
        ({"a": float("nan")}, {"a": float("nan")}, 1),
        ({"a": []}, {"a": []}, 1),
        ({"a": []}, {"a": {}}, 0),
        ({"a": []}, {"a": [1]}, 0),
        ([1, 2], [2, 1], 0),
        ([1, 2], [1, 2, 3], 2 / 3),
        ({"0": 1}, [1], 0),
        ({"a.b": 1}, {"a": {"b": 1}}, 0),
        ("paris", "Paris", 1),
        (3, 3, 1),
        (Item(name="pen", price=2), Item(name="pen", price=2), 1),
        (Item(name="pen", price=2, tags={"a", "b", "c"}), {"name": "pen", "price": 2, "tags": ["a", "b", "c"]}, 1),
        (Pair(1, 2), {"left": 1, "right": 3}, 1 / 2),
    ],
)
def test_json_fields(expected: object, got: object, value: float) -> None:
    assert json_fields(example(record=expected), answer(record=got)).value == pytest.approx(value)


def test_json_fields_names_every_leaf_that_is_not_right() -> None:
    expected = {"date": "May", "items": [{"name": "pen", "price": 2}], "note": "x"}
    got = {"date": "June", "items": [{"name": "pen", "price": 2, "size": 1}]}
    result = json_fields(example(bill=expected), answer(bill=got))
    assert result.value == pytest.approx(2 / 5)
    assert result.feedback == (
        "bill.date: expected 'May', got 'June'; bill.note: expected 'x', missing; bill.items.0.size: superfluous 1."
    )


def test_json_fields_may_let_extra_leaves_pass() -> None:
    case = example(bill={"a": 1, "b": 2})
    assert json_fields(case, answer(bill={"a": 1, "b": 2, "c": 3}), allow_extra=True).value == 1
    assert json_fields(case, answer(bill={"a": 1, "c": 3}), allow_extra=True).value == 1 / 2


def test_json_fields_says_where_the_text_is_no_json() -> None:
    feedback = json_fields(example(bill={"a": 1}), answer(bill='{"a": 1,\n b}')).feedback
    assert "no JSON: " in feedback and "line 2, column 2" in feedback
    assert "neither an object nor a list" in json_fields(example(bill={"a": 1}), answer(bill='"a"')).feedback
