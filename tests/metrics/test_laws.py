"""What holds of the metrics over all outputs, whatever they are."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.metrics import (
    BUILT_IN,
    Metric,
    exact_match,
    json_fields,
    numeric_closeness,
    score,
    set_overlap,
    token_f1,
    weighted,
)
from tests.metrics.cases import answer, example

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.lists(st.sampled_from(["a", "b", "c", "1", "2.5", "東", "?"]), max_size=8).map(" ".join)
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.floats(allow_nan=False, allow_infinity=False).map(str)
SETS = st.lists(st.sampled_from(["a", "B", "b", 1, 2.0, "x y"]), max_size=6)
STRICT = functools.partial(numeric_closeness, tolerance=0.1, zero_at=0.1)

METRICS: list[tuple[Metric, st.SearchStrategy[Any]]] = [
    (exact_match, JSON),
    (token_f1, JSON),
    (token_f1, WORDS),
    (numeric_closeness, NUMBERS),
    (STRICT, NUMBERS),
    (functools.partial(numeric_closeness, tolerance=0.2, absolute=1, zero_at=0.5), NUMBERS),
    (set_overlap, JSON),
    (set_overlap, SETS),
    (json_fields, JSON),
    (functools.partial(json_fields, allow_extra=True), JSON),
    (weighted([(token_f1, 0.1), (exact_match, 0.2), (set_overlap, 0.7)]), JSON),
]
BOTH_WAYS = [entry for entry in METRICS if getattr(entry[0], "keywords", {}).get("allow_extra") is None]


def named(entries: list[tuple[Metric, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("metric", "values"), entries, ids=range(len(entries)))


def test_every_built_in_metric_has_laws() -> None:
    assert {getattr(metric, "func", metric) for metric, _ in METRICS} >= set(BUILT_IN.values())


@named(METRICS)
@given(data=st.data())
def test_a_score_is_in_the_unit_interval_and_says_something(metric: Metric, values: Any, data: st.DataObject) -> None:
    case = example(one=data.draw(values), two=data.draw(values))
    result = score(metric, case, answer(one=data.draw(values), two=data.draw(values)))
    assert 0 <= result.value <= 1
    assert result.feedback


@named(METRICS)
@given(data=st.data())
def test_the_expected_answer_scores_1(metric: Metric, values: Any, data: st.DataObject) -> None:
    one, two = data.draw(values), data.draw(values)
    assert score(metric, example(one=one, two=two), answer(one=one, two=two)).value == 1


@named(BOTH_WAYS)
@given(data=st.data())
def test_it_is_the_same_both_ways(metric: Metric, values: Any, data: st.DataObject) -> None:
    one, two = data.draw(values), data.draw(values)
    assert (
        score(metric, example(out=one), answer(out=two)).value == score(metric, example(out=two), answer(out=one)).value
    )


@named([entry for entry in METRICS if entry[0] is not exact_match])
@given(data=st.data())
def test_a_missing_output_costs_its_share(metric: Metric, values: Any, data: st.DataObject) -> None:
    one = data.draw(values)
    result = score(metric, example(one=one, two=one), answer(one=one))
    assert result.value <= (1 / 2 if not hasattr(metric, "of") else 0.4 + 1e-9)
    assert "two: expected" in result.feedback


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e6))
def test_the_nearer_number_scores_no_less(expected: float, one: float, other: float) -> None:
    def value(got: float) -> float:
        return numeric_closeness(example(n=expected), answer(n=got), tolerance=0.01, zero_at=0.9).value

    near, far = sorted((one, other), key=lambda got: abs(got - expected))
    if (near - expected) * (far - expected) >= 0:  # on one side, where near is near by both measures
        assert value(near) >= value(far) - 1e-12


@given(st.floats(0, 1), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_at_one_limit_a_number_is_right_or_wrong(limit: float, expected: int, got: int) -> None:
    result = numeric_closeness(example(n=expected), answer(n=got), tolerance=limit, zero_at=limit)
    assert result.value in (0, 1)


@given(WORDS, WORDS, WORDS)
def test_more_right_words_never_hurt(expected: str, got: str, more: str) -> None:
    """Adding to both texts the same words does not lower F1."""
    before = token_f1(example(out=expected), answer(out=got)).value
    after = token_f1(example(out=f"{expected} {more}"), answer(out=f"{got} {more}")).value
    assert after >= before - 1e-12 or before == 1  # two texts without a word may be equal to the letter
