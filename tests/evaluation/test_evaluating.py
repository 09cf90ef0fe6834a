"""Evaluating a program: every row is scored once, and each kind of trouble is told from a wrong answer."""

from __future__ import annotations

import json
import threading
import time
from enum import Enum
from typing import Literal

import dspy
import pytest

from dspy_toolkit.errors import BudgetExhausted, DatasetError, EngineFailed, MetricError
from dspy_toolkit.gate.intervals import wilson
from dspy_toolkit.metrics import Score
from tests.evaluation.made import Calling, ScriptedLM, rows


def test_a_program_is_run_on_every_row_and_its_calls_are_counted(run, store):
    lm = ScriptedLM({"text 000": {"label": "yes"}, "text 001": {"label": "no"}, "text 002": {"label": "no"}})
    report = run(dspy.Predict("text -> label"), rows("yes", "yes", "no"), lm=lm)
    assert (report.split, report.n, report.mean) == ("val", 3, pytest.approx(2 / 3))
    assert (report.low, report.high) == wilson(2, 3)
    assert (report.usage.lm_calls, report.usage.physical_calls) == (3, 3)
    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == (21, 9)
    assert (report.parse_failures, report.metric_errors, report.parse_retries) == (0, 0, 0)
    assert lm.meter.usage.lm_calls == 0, "an evaluation has a meter of its own"

    table = store.read_frame(report.rows)
    assert table["_row"].tolist() == ["row0", "row1", "row2"]
    assert table["_group"].tolist() == ["group0", "group1", "group2"]
    assert table["value"].tolist() == [1, 0, 1]
    assert table["status"].tolist() == ["ok"] * 3
    assert table["feedback"][1] == "label: expected 'yes', got 'no'."
    assert json.loads(table["prediction"][1]) == {"label": "no"}
    assert json.loads(table["expected"][1]) == {"label": "yes"}
    assert json.loads(table["inputs"][1]) == {"text": "text 001"}


def test_an_unreadable_reply_is_a_parse_failure_and_not_a_wrong_answer(run, store):
    lm = ScriptedLM({"text 000": {"label": "yes"}})
    report = run(dspy.Predict("text -> label"), rows("yes", "yes"), lm=lm)
    assert (report.mean, report.parse_failures, report.usage.lm_calls) == (0.5, 1, 2)
    failed = store.read_frame(report.rows).iloc[1]
    assert (failed["status"], failed["value"], failed["prediction"]) == ("parse_failure", 0, "null")
    assert failed["feedback"] == "The reply cannot be read: 'No more responses'"


def test_a_metric_that_fails_now_and_then_is_counted_apart(run, store):
    def metric(example, prediction):
        return float("nan") if example.text == "text 003" else 1.0

    report = run(Calling(lambda text: "yes"), rows(*["yes"] * 10), metric)
    assert (report.mean, report.metric_errors, report.parse_failures) == (0.9, 1, 0)
    failed = store.read_frame(report.rows).iloc[3]
    assert failed["status"] == "metric_error"
    assert "row3" in failed["feedback"] and "NaN" in failed["feedback"]
    assert json.loads(failed["prediction"]) == {"label": "yes"}


@pytest.mark.parametrize("value", [float("nan"), 2.0, "good", None])
def test_a_broken_metric_ends_the_evaluation_and_names_a_row(run, value):
    with pytest.raises(MetricError, match=r"failed on 2 of the first \d+ rows of the val split.*on row row"):
        run(Calling(str), rows(*["yes"] * 10), lambda example, prediction: value)


def test_a_metric_that_raises_says_so(run):
    def metric(example, prediction):
        raise KeyError("answer")

    with pytest.raises(MetricError, match="KeyError"):
        run(Calling(str), rows("yes"), metric)


def test_graded_scores_get_an_interval_around_their_mean(run):
    report = run(Calling(str), rows(*["yes"] * 20), lambda e, p: Score(value=int(e.text[-2:]) / 20))
    assert report.mean == pytest.approx(0.475)
    assert 0 < report.low < 0.475 < report.high < 1


def test_the_report_does_not_depend_on_which_thread_ends_first(run, store):
    def answer(text):
        time.sleep(0.02 if text == "text 000" else 0)
        return text

    report = run(Calling(answer), rows("a", "b", "c"), threads=3)
    assert [json.loads(text)["label"] for text in store.read_frame(report.rows)["prediction"]] == [
        "text 000",
        "text 001",
        "text 002",
    ]


def test_values_are_compared_with_their_types(run, store):
    class Label(Enum):
        YES = "yes"
        NO = "no"

    signature = dspy.Signature({"text": (str, dspy.InputField()), "label": (Label, dspy.OutputField())}, "Judge.")
    program = dspy.Predict(signature)
    lm = ScriptedLM({"text 000": {"label": "yes"}})
    seen = []

    def metric(example, prediction):
        seen.append((example.label, prediction.label))
        return example.label is prediction.label

    report = run(program, rows("yes"), metric, lm=lm)
    assert seen == [(Label.YES, Label.YES)] and report.mean == 1
    assert json.loads(store.read_frame(report.rows)["prediction"][0]) == {"label": "yes"}


def test_progress_counts_every_row_in_the_callers_thread(run):
    seen = []
    run(
        Calling(str),
        rows(*"abcde"),
        progress=lambda done, total: seen.append((done, total, threading.current_thread())),
    )
    assert seen == [(done, 5, threading.main_thread()) for done in range(1, 6)]


def test_as_many_rows_run_at_once_as_there_are_threads(run):
    together = threading.Barrier(4, timeout=10)
    report = run(Calling(lambda text: together.wait() and text), rows(*["a"] * 8), threads=4)
    assert report.n == 8


def test_a_budget_that_is_spent_ends_the_evaluation(run):
    lm = ScriptedLM({"text": {"label": "yes"}})
    with pytest.raises(BudgetExhausted, match="budget of 3 LM calls"):
        run(dspy.Predict("text -> label"), rows(*["yes"] * 9), lm=lm, limit=3, threads=2)


def test_an_engine_that_fails_ends_the_evaluation_with_its_own_error(run):
    started = []

    def answer(text):
        started.append(text)
        time.sleep(0.01)
        try:
            raise EngineFailed("the engine's thread died")
        except EngineFailed as error:
            raise RuntimeError("litellm wraps it") from error

    with pytest.raises(EngineFailed, match="thread died"):
        run(Calling(answer), rows(*["a"] * 50), threads=2)
    assert len(started) < 50, "rows that had not begun are dropped"


def test_an_engine_that_fails_inside_a_metric_ends_the_evaluation_too(run):
    def metric(example, prediction):
        raise EngineFailed("the judge's engine died")

    with pytest.raises(EngineFailed, match="judge"):
        run(Calling(str), rows("a"), metric)


def test_an_interrupt_drops_the_waiting_rows_and_is_raised_at_once(run):
    release, started = threading.Event(), []

    def answer(text):
        started.append(text)
        if text != "text 000":
            release.wait(10)
        return text

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Calling(answer), rows(*["a"] * 30), threads=2, progress=interrupted)
    release.set()
    assert len(started) <= 3


def test_no_trace_of_one_row_reaches_another(run):
    lengths = []
    predict = dspy.Predict("text -> label")

    class Program(dspy.Module):
        def forward(self, text):
            answer = predict(text=text)
            lengths.append(len(dspy.settings.trace))
            return answer

    run(Program(), rows(*["yes"] * 5), lm=ScriptedLM({"text": {"label": "yes"}}), threads=1)
    assert lengths == [1] * 5


def test_a_split_without_rows_is_refused(run):
    with pytest.raises(DatasetError, match="val split has no rows"):
        run(Calling(str), rows())


def test_a_typed_reply_outside_its_choices_is_a_parse_failure(run):
    signature = dspy.Signature(
        {"text": (str, dspy.InputField()), "label": (Literal["yes", "no"], dspy.OutputField())}, "Judge."
    )
    report = run(dspy.Predict(signature), rows("yes"), lm=ScriptedLM({"text": {"label": "perhaps"}}))
    assert (report.parse_failures, report.mean) == (1, 0)
