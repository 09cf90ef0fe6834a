"""A row that cannot be run is a zero with its reason; many are one error; a model that fails is no row's fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import ContextWindowExceededError, LMServerError

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineFailed,
    MetricError,
    ProgramError,
    PromptTooLong,
    RequestRefused,
    ToolkitError,
    causes,
)
from dspy_toolkit.evaluation import evaluate, score_rows
from dspy_toolkit.lm import root_error
from dspy_toolkit.metrics import exact_match, judge
from dspy_toolkit.testing import OutOfAnswers, fake_connection
from tests.evaluation.made import Calling, rows


def failing(error: Exception, *texts: str) -> Calling:
    """A program that raises on the rows with these texts."""

    def answer(text: str) -> str:
        if not texts or text in texts:
            raise error
        return "yes"

    return Calling(answer)


def wrapped(inner: Exception) -> Exception:
    """As DSPy and LiteLLM hand it on."""
    error = RuntimeError("somebody wrapped it")
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ZeroDivisionError("division by zero"), "program_error", "The program raised ZeroDivisionError: division by"),
        (wrapped(PromptTooLong("9000 tokens")), "prompt_too_long", "9000 tokens"),
        (wrapped(RequestRefused("the filter said no")), "request_refused", "the filter said no"),
    ],
)
def test_one_bad_row_is_a_zero_that_says_why(run, store, error, status, says):
    report = run(failing(error, "text 003"), rows(*["yes"] * 10))
    assert (report.mean, report.errors, report.n) == (0.9, 1, 10)
    assert (report.parse_failures, report.metric_errors) == (0, 0)
    bad = store.read_frame(report.rows).iloc[3]
    assert (bad["status"], bad["value"], bad["prediction"]) == (status, 0, "null")
    assert says in bad["feedback"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            ZeroDivisionError("division by zero"),
            ProgramError,
            r"The program failed on 2 of the first \d+ rows of the val split, more than 10% of its 10\. "
            r"The first, row row\d: The program raised ZeroDivisionError: .*\. Correct the program",
        ),
        (PromptTooLong("9000 tokens."), PromptTooLong, r"The first, row row\d: 9000 tokens\.$"),
        (RequestRefused("no."), RequestRefused, r"The model refused 2 of .* row row\d: no\.$"),
    ],
)
def test_many_are_one_error_that_names_the_first(run, error, kind, says):
    with pytest.raises(kind, match=says) as caught:
        run(failing(error), rows(*["yes"] * 10))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_all_kinds_of_bad_rows_count_against_one_share(run):
    def answer(text: str) -> str:
        raise PromptTooLong("long") if text == "text 000" else ValueError("odd")

    frame = rows(*["yes"] * 10)
    with pytest.raises((PromptTooLong, ProgramError), match="2 of the first"):
        run(Calling(lambda text: answer(text) if text < "text 002" else "yes"), frame)


@pytest.mark.parametrize("error", [EngineFailed("died"), DeadlineExceeded("late"), LMServerError("no status")])
def test_a_model_that_fails_once_ends_it(run, error):
    with pytest.raises(type(error), match=str(error)):
        run(failing(error, "text 003"), rows(*["yes"] * 10))
    with pytest.raises((type(error), RuntimeError)) as caught:
        run(failing(wrapped(error), "text 003"), rows(*["yes"] * 10))
    assert any(isinstance(cause, type(error)) for cause in causes(caught.value))


def test_a_prompt_that_does_not_fit_is_told_from_other_rows_by_the_engine(tmp_path: Path, store) -> None:
    def reply(request: Any) -> Any:
        return {"label": "yes"}

    connection = fake_connection(reply, tmp_path, context_size=600)
    frame = rows(*["yes"] * 12)
    frame.loc[5, "text"] = "long " * 2_000
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
    options: dict[str, Any] = {"split": "val", "lm": connection.lm, "adapter": connection.adapter}
    report = evaluate(dspy.Predict("text -> label"), frame, spec, exact_match, store=store, **options)
    assert (report.errors, report.mean) == (1, pytest.approx(11 / 12))
    assert store.read_frame(report.rows)["status"][5] == "prompt_too_long"
    frame["text"] = "long " * 2_000
    with pytest.raises(PromptTooLong, match="The model cannot be given the prompts of 2 of the first 2 rows"):
        evaluate(dspy.Predict("text -> label"), frame, spec, exact_match, store=store, threads=1, **options)


def test_a_judge_whose_prompt_does_not_fit_is_a_metric_error(run, store):
    def metric(example, prediction):
        if example.text == "text 003":
            raise ContextWindowExceededError() from PromptTooLong("9000 tokens")
        return 1.0

    report = run(Calling(str), rows(*["yes"] * 10), metric)
    assert (report.metric_errors, report.errors, report.mean) == (1, 0, 0.9)
    assert store.read_frame(report.rows)["feedback"][3] == "The metric's own request was refused. 9000 tokens"
    with pytest.raises(MetricError, match="failed on 1 of"):
        run(Calling(str), rows(*["yes"] * 2), lambda e, p: judge_refused())


def judge_refused() -> float:
    raise PromptTooLong("9000 tokens")


def test_a_fake_that_runs_out_of_answers_is_no_bad_row(tmp_path: Path, store) -> None:
    connection = fake_connection([{"label": "yes"}] * 19, tmp_path)
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
    with pytest.raises(ToolkitError) as caught:
        evaluate(
            dspy.Predict("text -> label"),
            rows(*["yes"] * 20),
            spec,
            exact_match,
            split="val",
            lm=connection.lm,
            adapter=connection.adapter,
            store=store,
        )
    assert isinstance(root_error(caught.value), OutOfAnswers)


def test_the_searchs_scoring_treats_bad_rows_alike(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: {"label": "yes"}, tmp_path, context_size=600)
    case = dspy.Example(text="short", label="yes").with_inputs("text")
    cases = [case] * 11 + [dspy.Example(text="long " * 2_000, label="yes").with_inputs("text")]

    def scored(cases: list[dspy.Example]) -> list[str]:
        keys = [str(place) for place in range(len(cases))]
        lm = connection.lm.metered()
        found = score_rows(
            dspy.Predict("text -> label"), cases, exact_match, keys=keys, split="val", lm=lm, adapter=connection.adapter
        )
        return [row.status for row in found]

    assert scored(cases) == ["ok"] * 11 + ["prompt_too_long"]
    with pytest.raises(RequestRefused):  # what leaves a candidate out
        scored(cases[-1:])


def test_truncated_replies_and_the_judges_tokens_are_counted_apart(tmp_path: Path, store) -> None:
    def reply(request: Any) -> Any:
        if "[[ ## answer ## ]]" in request.messages[-1].content:
            return {"reason": "So so.", "grade": 3}
        return "[[ ## label ## ]]\n" + "on and on " * 300

    connection = fake_connection(reply, tmp_path, check_grammar=False)
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
    report = evaluate(
        dspy.Predict("text -> label"),
        rows(*["yes"] * 4),
        spec,
        judge("Is it short?"),
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=store,
    )
    assert (report.truncated, report.parse_failures, report.mean) == (4, 0, 0.5)
    assert (report.usage.lm_calls, report.judge_usage.lm_calls) == (4, 4)
    assert report.usage.completion_tokens == 4 * 256
    assert 0 < report.judge_usage.completion_tokens < 4 * 40
    assert 0 < report.usage.prompt_tokens < report.judge_usage.prompt_tokens


def test_what_a_metric_of_ones_own_asks_is_the_judges_too(tmp_path: Path, store) -> None:
    connection = fake_connection(lambda request: {"label": "yes"}, tmp_path)
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
    grade = dspy.Predict("answer -> label")

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return grade(answer=prediction.label).label == "yes"

    options: dict[str, Any] = {"split": "val", "adapter": connection.adapter, "store": store}
    report = evaluate(
        dspy.Predict("text -> label"), rows(*["yes"] * 3), spec, metric, lm=connection.lm, limit=6, **options
    )
    assert (report.usage.lm_calls, report.judge_usage.lm_calls, report.mean) == (3, 3, 1)
    with pytest.raises(ToolkitError, match="budget of 5 LM calls"):
        evaluate(dspy.Predict("text -> label"), rows(*["yes"] * 3), spec, metric, lm=connection.lm, limit=5, **options)
