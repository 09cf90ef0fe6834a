"""Metrics over texts and numbers: what they score, and what they say."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum

import pytest
from pydantic import BaseModel

from dspy_toolkit.errors import MetricError
from dspy_toolkit.metrics import exact_match, numeric_closeness, score, token_f1
from dspy_toolkit.metrics.answers import number_of, tokens_of
from tests.metrics.cases import answer, example


class Color(Enum):
    RED = "red"


class Note(BaseModel):
    title: str
    words: list[str]


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        ("Red", " red\n", 1),
        ("STRASSE", "straße", 1),
        ("red", "reddish", 0),
        ("", "", 1),
        (3, 3, 1),
        (3, "3", 0),
        (True, True, 1),
        (0.5, 0.5, 1),
        (["a", "b"], ["a", "b"], 1),
        (["a", "b"], ["b", "a"], 0),
        (Color.RED, "red", 1),
        ("red", Color.RED, 1),
        (None, None, 1),
    ],
)
def test_exact_match_compares_one_output(expected: object, got: object, value: int) -> None:
    assert exact_match(example(label=expected), answer(label=got)).value == value


def test_exact_match_wants_every_output_and_names_the_wrong_ones() -> None:
    result = exact_match(example(label="a", count=2, sure=True), answer(label="A", count=3, reasoning="…"))
    assert result.value == 0
    assert result.feedback == "count: expected 2, got 3. sure: expected True, got no answer."


def test_exact_match_refuses_an_example_without_outputs() -> None:
    with pytest.raises(MetricError, match="no output"):
        score(exact_match, example(), answer(label="a"))


def test_exact_match_looks_at_the_fields_that_it_is_given() -> None:
    case, got = example(label="a", count=2), answer(label="a", count=3)
    assert exact_match(case, got, fields=("label",)).value == 1
    assert exact_match(case, got, fields=("count",)).value == 0
    with pytest.raises(MetricError, match=r"no output 'lable'\. Did you mean label\?"):
        score(lambda example, prediction: exact_match(example, prediction, fields=("lable",)), case, got)


def test_a_long_value_is_cut_in_the_feedback() -> None:
    feedback = exact_match(example(label="a"), answer(label="b" * 10_000)).feedback
    assert "bbb…" in feedback and len(feedback) < 500


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The cat, the CAT!", ["the", "cat", "the", "cat"]),
        ("1,234.5 km²", ["1,234.5", "km2"]),
        ("naïve café", ["naïve", "café"]),
        ("東京 Tower", ["東", "京", "tower"]),
        ("日本 abc 韓", ["日", "本", "abc", "韓"]),
        ("?!", []),
        (["a b", 3], ["a", "b", "3"]),
        ({"k": "v"}, ["k", "v"]),
        (Color.RED, ["red"]),
        (Note(title="One", words=["two"]), ["title", "one", "words", "two"]),
        (None, ["null"]),
    ],
)
def test_words(text: object, tokens: list[str]) -> None:
    assert sorted(tokens_of(text).elements()) == sorted(tokens)


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        ("the cat sat", "The cat sat.", 1),
        ("the cat sat", "sat the cat", 1),
        ("a b c d", "a b x y", 0.5),
        ("a a b", "a b", 0.8),
        ("a", "b", 0),
        ("a", "", 0),
        ("", "", 1),
        ("?", "!", 0),
    ],
)
def test_token_f1(expected: str, got: str, value: float) -> None:
    assert token_f1(example(text_out=expected), answer(text_out=got)).value == pytest.approx(value)


def test_token_f1_says_which_words_are_missing_and_which_superfluous() -> None:
    result = token_f1(example(label="red brick house", count="two"), answer(label="a red house"))
    assert result.value == pytest.approx(2 / 3 / 2)
    assert result.feedback == (
        "label: expected 'red brick house', got 'a red house' (F1 0.67; missing: brick; superfluous: a). "
        "count: expected 'two', got no answer."
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (3, 3.0),
        (Decimal("2.5"), 2.5),
        ("12", 12.0),
        ("about 1,234.5 km", 1234.5),
        ("1,234, and 5,678, too", 5678.0),
        ("1,234,567", 1234567.0),
        ("12,34", 34.0),
        ("−5", -5.0),
        ("-5 °C", -5.0),
        ("2024-05", 5.0),
        ("so 3 + 4 = 7.", 7.0),
        (".5", 0.5),
        ("1.2.3", 3.0),
        ("1e-4", 0.0001),
        ("12%", 12.0),
        ("none", None),
        ("", None),
        (None, None),
        (True, None),
        (float("nan"), None),
        ([1, 2], None),
        (10**400, float("inf")),
        (-(10**400), float("-inf")),
    ],
)
def test_the_number_in_a_value(text: object, number: float | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("expected", "got", "options", "value"),
    [
        (100, 100, {}, 1),
        (100, 90, {}, 0.9),
        (90, 100, {}, 0.9),
        (100, 50, {}, 0.5),
        (100, 200, {}, 0.5),
        (100, -100, {}, 0),
        (100, 0, {}, 0),
        (0, 0, {}, 1),
        (0, 0.001, {}, 0),
        (0, 0.001, {"absolute": 0.01}, 1),
        (100, 104, {"tolerance": 0.05}, 1),
        (100, 90, {"tolerance": 0.05, "zero_at": 0.15}, 0.5),
        (100, 80, {"tolerance": 0.05, "zero_at": 0.15}, 0),
        (100, 94, {"tolerance": 0.05, "zero_at": 0.05}, 0),
        (100, 96, {"tolerance": 0.05, "zero_at": 0.05}, 1),
        (100, 99, {"zero_at": 0}, 0),
        ("4 apples", "I count 4.", {}, 1),
        (4, "four", {}, 0),
        (float("inf"), float("inf"), {}, 1),
        (float("inf"), 1, {}, 0),
        (1e308, -1e308, {}, 0),
    ],
)
def test_numeric_closeness(expected: object, got: object, options: dict[str, float], value: float) -> None:
    assert numeric_closeness(example(n=expected), answer(n=got), **options).value == pytest.approx(value)


def test_numeric_closeness_says_how_far_off_it_is() -> None:
    result = numeric_closeness(example(price=12, tax=3, sum=15), answer(price=15, tax="none"))
    assert result.feedback == (
        "price: expected 12, got 15 (3 too high). tax: expected 3, got 'none' (no number). "
        "sum: expected 15, got no answer."
    )


def test_an_expected_value_that_is_no_number_is_the_rows_fault() -> None:
    with pytest.raises(MetricError, match=r"row 2: the output name of the example is 'Ann', no number\. Name the"):
        score(numeric_closeness, example(name="Ann"), answer(name="Ann"), row="2")
