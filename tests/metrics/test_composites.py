"""Several metrics in one: weights, constraints, and what is said of both."""

from __future__ import annotations

import functools

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import EngineBusy, MetricError, ProjectError
from dspy_toolkit.metrics import (
    Metric,
    Score,
    as_feedback,
    as_float,
    exact_match,
    judge,
    models_of,
    name_of,
    outputs_needed,
    score,
    source_of,
    token_f1,
    weighted,
)
from tests.metrics.cases import answer, example


def always(value: float) -> Metric:
    return functools.partial(_constant, value=value)


def _constant(example: dspy.Example, prediction: dspy.Prediction, value: float) -> Score:
    return Score(value=value, feedback=f"It is {value:g}.")


def short(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    length = len(prediction.label)
    return Score(value=float(length <= 5), feedback=f"The label has {length} characters; 5 are allowed.")


def test_the_mean_goes_by_weight_and_the_feedback_names_every_part() -> None:
    metric = weighted([(token_f1, 3), exact_match])
    result = score(metric, example(label="red house"), answer(label="red"))
    assert result.value == pytest.approx(3 / 4 * 2 / 3)
    assert result.feedback == (
        "token_f1: 0.67. label: expected 'red house', got 'red' (F1 0.67; missing: house).\n"
        "exact_match: 0.00. label: expected 'red house', got 'red'."
    )


def test_a_constraint_that_fails_makes_the_score_0_and_is_said_first() -> None:
    metric = weighted([exact_match], require=[short])
    case = example(label="orange")
    result = score(metric, case, answer(label="orange"))
    assert result.value == 0
    first, second = result.feedback.splitlines()
    assert first.startswith("A requirement is not met, so the score is 0: ")
    assert "short is 0 and must be at least 1. The label has 6 characters; 5 are allowed." in first
    assert second == "exact_match: 1.00. Right."
    held = score(metric, example(label="red"), answer(label="red"))
    assert held == Score(value=1, feedback="exact_match: 1.00. Right.")


def test_a_constraint_may_be_content_with_less() -> None:
    for value, expected in ((0.49, 0), (0.5, 1)):
        assert score(weighted([always(1)], require=[(always(value), 0.5)]), example(), answer()).value == expected


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1000)), min_size=1, max_size=6),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1)), max_size=3),
)
def test_it_lies_between_its_parts_or_is_0(parts: list[tuple[float, float]], held: list[tuple[float, float]]) -> None:
    metric = weighted(
        [(always(value), weight) for value, weight in parts],
        [(always(value), least) for value, least in held],
    )
    result = score(metric, example(), answer()).value
    if any(value < least for value, least in held):
        assert result == 0
    else:
        values = [value for value, _ in parts]
        assert min(values) - 1e-9 <= result <= max(values) + 1e-9
        # Only the ratio of the weights counts.
        tenfold = weighted([(always(value), weight * 10) for value, weight in parts])
        assert score(tenfold, example(), answer()).value == pytest.approx(result, abs=1e-9)


def test_every_part_is_called_once_with_the_optimizers_hints() -> None:
    calls: list[tuple[str, object]] = []

    def part(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        calls.append(("part", trace))
        return 0.5

    def held(example: dspy.Example, prediction: dspy.Prediction, pred_name: object = None) -> bool:
        calls.append(("held", pred_name))
        return False

    metric = weighted([part, weighted([part])], require=[held])
    view = as_feedback(metric)(example(), answer(), ["step"], "predict", [])
    assert view.score == 0
    assert calls == [("held", "predict"), ("part", ["step"]), ("part", ["step"])]
    assert as_float(metric)(example(), answer(), ["step"]) == 0.0


def test_a_part_that_fails_is_named_inside_the_whole() -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return {}["label"]

    def busy(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise EngineBusy("the queue is full")

    with pytest.raises(
        MetricError, match=r"^metric weighted\(.*\) on row 3: metric .*broken raised KeyError: 'label' \("
    ):
        score(weighted([broken]), example(), answer(), row="3")
    with pytest.raises(EngineBusy):
        score(weighted([busy]), example(), answer())


def test_name_source_outputs_and_models_are_those_of_the_parts() -> None:
    fields = functools.partial(token_f1, fields=("answer",))
    metric = weighted(
        [(fields, 0.7), (judge("Polite?", model="openai/a"), 0.3)], require=[(exact_match, 0.5), exact_match]
    )
    assert name_of(metric) == (
        "weighted(0.7 token_f1(fields=('answer',)), 0.3 judge('Polite?', model='openai/a'); "
        "requires exact_match >= 0.5, exact_match)"
    )
    assert models_of(metric) == ("openai/a",)
    assert outputs_needed(metric) == {"token_f1": ("answer",), "exact_match": ()}
    sources = {
        source_of(metric),
        source_of(weighted(metric.of)),
        source_of(weighted([(fields, 0.6), metric.of[1]], metric.require)),
        source_of(weighted([(fields, 0.7), (judge("Kind?", model="openai/a"), 0.3)], metric.require)),
        source_of(weighted([(token_f1, 0.7), metric.of[1]], metric.require)),
    }
    assert len(sources) == 5
    assert source_of(weighted(list(metric.of), list(metric.require))) in sources


@pytest.mark.parametrize(
    ("of", "require", "says"),
    [
        ([], [], "of is empty"),
        (["token_f1"], [], "'token_f1' is no metric"),
        ([(token_f1, 0)], [], r"weight of token_f1 is 0\. Give a number above 0"),
        ([(token_f1, -1)], [], "is -1"),
        ([(token_f1, float("inf"))], [], "is inf"),
        ([(token_f1, float("nan"))], [], "is nan"),
        ([(token_f1, "1")], [], "is '1'"),
        ([(token_f1, True)], [], "is True"),
        ([token_f1], [(exact_match, 1.5)], r"at_least of exact_match is 1\.5\. Give a number in \(0, 1\]"),
        ([token_f1], [(exact_match, 0)], "is 0"),
    ],
)
def test_what_cannot_be_weighed_is_refused(of: list[Metric], require: list[Metric], says: str) -> None:
    with pytest.raises(ProjectError, match=says):
        weighted(of, require)
