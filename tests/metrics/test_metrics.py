"""Scores, built-in metrics, and what each optimizer sees of a metric."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from enum import Enum
from pathlib import Path

import dspy
import numpy as np
import pytest
from dspy.utils import DummyLM
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import EngineBusy, MetricError, ProjectError
from dspy_toolkit.metrics import (
    Score,
    as_feedback,
    as_float,
    exact_match,
    name_of,
    resolve_metric,
    score,
    source_of,
)


class Color(Enum):
    RED = "red"


def example(**labels: object) -> dspy.Example:
    return dspy.Example(text="x", **labels).with_inputs("text")


def answer(**fields: object) -> dspy.Prediction:
    return dspy.Prediction(**fields)


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
        MetricError, match=rf"broken on row 3 raised KeyError: 'label' \(test_metrics.py, line {line}\)"
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


def test_resolve_finds_built_ins_callables_and_functions() -> None:
    assert resolve_metric("exact_match", None) is exact_match
    assert resolve_metric(len, None) is len
    assert resolve_metric("dspy_toolkit.metrics:exact_match", None) is exact_match
    assert name_of(exact_match) == "exact_match"


def test_two_folders_may_hold_metrics_of_one_name(tmp_path: Path) -> None:
    for value in (0.25, 0.75):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "my_metric.py").write_text(f"def close(example, prediction):\n    return {value}\n")
    first, second = (resolve_metric("my_metric:close", tmp_path / str(value)) for value in (0.25, 0.75))
    assert (first(None, None), second(None, None)) == (0.25, 0.75)
    assert name_of(first) == "my_metric:close"


def test_a_package_beside_the_project_may_import_within_itself(tmp_path: Path) -> None:
    package = tmp_path / "scoring"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("WEIGHT = 0.5\n")
    (package / "main.py").write_text("from .parts import WEIGHT\ndef f(example, prediction):\n    return WEIGHT\n")
    metric = resolve_metric("scoring.main:f", tmp_path)
    assert metric(None, None) == 0.5
    assert "WEIGHT = 0.5" in source_of(metric)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exact_mach", "Did you mean exact_match?"),
        ("good:closs", "good has no function closs. Did you mean close?"),
        ("good:LIMIT", "good has 3, not a function"),
        ("gooood:close", "There is no module gooood"),
        ("gooood:close", "Did you mean good?"),
        (":close", "module:function"),
        ("broken:f", "NameError: name 'undefined' is not defined (broken.py, line 2)"),
        ("unparsed:f", "SyntaxError: '(' was never closed (unparsed.py, line 1)"),
        ("exits:f", "SystemExit: 3 (exits.py, line 2)"),
        ("needs:f", "ModuleNotFoundError: No module named 'not_installed' (needs.py, line 1)"),
    ],
)
def test_a_metric_that_cannot_be_had_is_explained(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "good.py").write_text("LIMIT = 3\ndef close(example, prediction):\n    return 1\n")
    (tmp_path / "broken.py").write_text("x = 1\nundefined\n")
    (tmp_path / "unparsed.py").write_text("f(\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import not_installed\n")
    with pytest.raises(ProjectError) as caught:
        resolve_metric(name, tmp_path)
    assert says in str(caught.value)


def test_the_source_changes_with_the_file_and_with_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    def source(main: str, beside: str, folder: str) -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "beside_metric.py").write_text(beside)
        (place / "main_metric.py").write_text(main)
        return source_of(resolve_metric("main_metric:f", place))

    main = "import beside_metric\ndef f(example, prediction):\n    return 1\n"
    first = source(main, "A = 1\n", "one")
    assert source(main, "A = 1\n", "two") == first  # the folder is not in it
    assert source(main, "A = 2\n", "one") != first
    assert source(main, "A = 1\n", "one") == first
    assert source(main.replace("return 1", "return 0"), "A = 1\n", "one") != first
    assert str(tmp_path) not in first


def test_the_library_is_never_imported_a_second_time() -> None:
    repository = Path(__file__).parents[1]
    assert resolve_metric("dspy_toolkit.metrics:exact_match", repository) is exact_match


def test_an_edited_file_is_imported_again(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    file.write_text("def f(example, prediction):\n    return 0\n")
    assert resolve_metric("edited:f", tmp_path)(None, None) == 0
    file.write_text("def f(example, prediction):\n    return 1\n")
    assert resolve_metric("edited:f", tmp_path)(None, None) == 1


def test_the_source_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(example, prediction, limit=1):\n    return limit\n")
    program = (
        "import functools, json; from pathlib import Path; from dspy_toolkit.metrics import *\n"
        f"f = resolve_metric('m:f', Path({str(tmp_path)!r}))\n"
        'typed = eval(\'lambda example, prediction: (example in {"a", "b", "c"}, lambda: 3)\')\n'
        "print(json.dumps([source_of(g) for g in (f, exact_match, functools.partial(f, limit=0.5), typed)]))\n"
    )
    runs = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(set(json.loads(runs.pop()))) == 4


def test_bound_arguments_and_attributes_are_in_the_source() -> None:
    class Close:
        def __init__(self, limit: float) -> None:
            self.limit = limit

        def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
            return self.limit

    assert source_of(Close(0.1)) == source_of(Close(0.1)) != source_of(Close(0.2))
    bound = functools.partial(exact_match, example=1)
    assert source_of(bound) == source_of(functools.partial(exact_match, example=1)) != source_of(exact_match)
    assert name_of(bound).endswith(":exact_match")
    assert name_of(Close(1)).endswith("Close")
