"""What becomes of a metric's answer, and what each optimizer sees of a metric."""

from __future__ import annotations

import math

import dspy
import numpy as np
import pytest
from dspy.utils import DummyLM
from dspy.utils.exceptions import LMError
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import EngineBusy, MetricError
from dspy_toolkit.metrics import Score, as_feedback, as_float, score
from tests.metrics.cases import answer, example


@pytest.mark.parametrize(
    ("returned", "value", "feedback"),
    [
        (True, 1, ""),
        (False, 0, ""),
        (0.25, 0.25, ""),
        (1, 1, ""),
        (1 + 1e-12, 1, ""),
        (np.float32(0.5), 0.5, ""),
        (np.bool_(True), 1, ""),
        (np.array([0.5]), 0.5, ""),
        (Score(value=0.5, feedback="half"), 0.5, "half"),
        (dspy.Prediction(score=0.5, feedback="half"), 0.5, "half"),
        (dspy.Prediction(score=True), 1, ""),
    ],
)
def test_score_takes_what_metrics_return(returned: object, value: float, feedback: str) -> None:
    assert score(lambda example, prediction: returned, example(), answer()) == Score(value=value, feedback=feedback)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_a_score_exactly_when_it_is_in_the_unit_interval(number: float) -> None:
    if 0 <= number <= 1:
        assert score(lambda example, prediction: number, example(), answer()).value == number
    elif math.isnan(number) or not -1e-9 <= number <= 1 + 1e-9:
        with pytest.raises(MetricError):
            score(lambda example, prediction: number, example(), answer())


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (2.0, "returned 2.0, which is not in [0, 1]"),
        (-0.5, "returned -0.5"),
        (float("nan"), "returned NaN"),
        (None, "returned None. Return a bool"),
        ("1", "returned '1'"),
        ({"score": 1}, "returned {'score': 1}"),
        (np.array([0.5, 0.5]), "returned array"),
        (dspy.Prediction(score=None), "returned Prediction"),
    ],
)
def test_what_is_no_score_is_refused_with_metric_row_and_value(returned: object, says: str) -> None:
    def my_metric(example: dspy.Example, prediction: dspy.Prediction) -> object:
        return returned

    with pytest.raises(MetricError) as caught:
        score(my_metric, example(), answer(), row="17")
    assert "my_metric on row 17" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_metric_that_raises_is_named_with_its_place() -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return {}["label"]  # line wanted in the message

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(
        MetricError, match=rf"broken on row 3 raised KeyError: 'label' \(test_calling.py, line {line}\)"
    ):
        score(broken, example(), answer(), row="3")


def test_an_error_of_the_engine_is_not_the_metrics_fault() -> None:
    def judge(example: dspy.Example, prediction: dspy.Prediction) -> float:
        try:
            raise EngineBusy("the queue is full")
        except EngineBusy as error:
            raise RuntimeError("a client library's own wrapping") from error

    with pytest.raises(RuntimeError) as caught:
        score(judge, example(), answer())
    assert isinstance(caught.value.__cause__, EngineBusy)


def test_an_error_of_a_provider_is_not_the_metrics_fault() -> None:
    def judge(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise LMError("no connection")

    with pytest.raises(LMError, match="no connection"):
        score(judge, example(), answer())


def test_an_error_that_a_metric_raised_as_such_gets_metric_and_row() -> None:
    def strict(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise MetricError("the answer has no unit.")

    with pytest.raises(MetricError) as caught:
        score(strict, example(), answer(), row="4")
    assert str(caught.value).endswith("strict on row 4: the answer has no unit.")


def test_hints_go_by_name_to_those_that_take_them() -> None:
    seen: list[object] = []

    def with_trace(example: dspy.Example, prediction: dspy.Prediction, trace: object) -> bool:
        seen.append(trace)
        return True

    def with_tolerance(example: dspy.Example, prediction: dspy.Prediction, tolerance: float = 0.1) -> float:
        return tolerance

    score(with_trace, example(), answer())
    as_float(with_trace)(example(), answer(), ["step"])
    as_feedback(with_trace)(example(), answer(), ["step"], "predict", [])
    assert seen == [None, ["step"], ["step"]]
    assert as_float(with_tolerance)(example(), answer(), ["step"]) == 0.1


def test_bootstrap_keeps_no_wrong_demo() -> None:
    """A `dspy.Prediction(score=0.0)` is true, and would keep them all."""

    def graded(example: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
        return dspy.Prediction(score=float(prediction.label == example.label), feedback="")

    rows = [dspy.Example(text=str(i), label="yes" if i % 2 else "no").with_inputs("text") for i in range(4)]
    optimizer = dspy.BootstrapFewShot(metric=as_float(graded), max_bootstrapped_demos=4, max_labeled_demos=0)
    with dspy.context(lm=DummyLM([{"label": "yes"}] * 20)):
        program = optimizer.compile(dspy.Predict("text -> label"), trainset=rows)
    assert [demo.text for demo in program.demos] == ["1", "3"]


def test_gepa_accepts_the_view_of_a_metric_of_two_arguments() -> None:
    view = as_feedback(lambda example, prediction: 0.5)
    dspy.GEPA(metric=view, max_metric_calls=1, reflection_lm=DummyLM([{"x": "y"}]))
    assert dict(view(example(), answer()).items()) == {"score": 0.5, "feedback": "The score is 0.5 of 1."}
