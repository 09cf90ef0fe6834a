"""A language model as a judge: what it is asked, what becomes of its reply, and who pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pandas as pd
import pytest
from dspy.utils import DummyLM

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import BudgetExhausted, EngineFailed, MetricError, ProjectError
from dspy_toolkit.evaluation import evaluate
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.metrics import as_float, exact_match, judge, name_of, score, source_of, weighted
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.metrics.cases import answer, example

RUBRIC = "The answer is polite and names a colour."
GOOD = {"reason": "It is polite.", "grade": 5}


def test_a_grade_becomes_a_score_and_the_reason_its_feedback(tmp_path: Path) -> None:
    replies = [{"reason": "It names no colour.", "grade": grade} for grade in (1, 3, 5)]
    connection = fake_connection(replies, tmp_path)
    with connection.context():
        results = [score(judge(RUBRIC), example(label="red"), answer(label=f"answer {n}")) for n in range(3)]
    assert [result.value for result in results] == [0, 0.5, 1]
    assert results[1].feedback == "Grade 3 of 5. It names no colour."


def test_the_judge_is_shown_rubric_task_expected_and_answer_but_no_reasoning(tmp_path: Path) -> None:
    connection = fake_connection([GOOD, GOOD, GOOD], tmp_path)
    got = answer(label="blue", count=2, reasoning="I thought long.")
    with connection.context():
        judge(RUBRIC)(example(label="red"), got)
        judge(RUBRIC)(example(), got)
        judge(RUBRIC, fields=["reasoning"])(example(label="red"), got)
    first, second, third = fake_engine(connection).requests
    system, user = (message.content for message in first.messages)
    assert RUBRIC in system and "from 1 (the rubric is not met at all) to 5" in system
    assert RUBRIC not in user  # what all rows share stands first, where the engine reads it once
    assert "[[ ## task ## ]]\ntext: x\n" in user
    assert "[[ ## expected ## ]]\nlabel: red\n" in user
    assert "[[ ## answer ## ]]\nlabel: blue\ncount: 2" in user
    assert "I thought long." not in user
    assert "[[ ## expected ## ]]" not in second.messages[-1].content
    assert "[[ ## answer ## ]]\nreasoning: I thought long." in third.messages[-1].content
    assert all(request.grammar for request in (first, second, third))


def test_a_scale_of_its_own(tmp_path: Path) -> None:
    connection = fake_connection([{"reason": "Fine.", "grade": 2}, {"reason": "No.", "grade": 3}], tmp_path)
    with connection.context():
        assert score(judge(RUBRIC, scale=2), example(), answer(label="a")).value == 1
        # The grammar knows no grade 3 of 2, and the fake says only what the grammar lets it say.
        with pytest.raises(Exception, match="does not fit the grammar"):
            score(judge(RUBRIC, scale=2), example(), answer(label="b"))


def test_a_judgement_that_cannot_be_read_is_a_metric_error_of_its_row(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "Very good!", tmp_path, check_grammar=False)
    with connection.context(), pytest.raises(MetricError) as caught:
        score(judge(RUBRIC), example(), answer(label="a"), row="17")
    assert "on row 17: the judgement cannot be read: 'Very good!'." in str(caught.value)


def test_a_model_that_fails_is_no_judgement(tmp_path: Path) -> None:
    connection = fake_connection([EngineFailed("out of memory")], tmp_path)
    with connection.context(), pytest.raises(Exception, match="out of memory") as caught:
        score(judge(RUBRIC), example(), answer(label="a"))
    assert not isinstance(caught.value, MetricError)
    assert isinstance(root_error(caught.value), EngineFailed)


def test_its_calls_are_charged_and_cached(tmp_path: Path) -> None:
    connection = fake_connection([GOOD], tmp_path)
    lm = connection.lm.metered(2)
    with connection.context(lm):
        for _ in range(2):
            assert score(judge(RUBRIC), example(), answer(label="a")).value == 1
        assert (lm.meter.usage.lm_calls, lm.meter.usage.physical_calls) == (2, 1)
        with pytest.raises(BudgetExhausted):
            score(judge(RUBRIC), example(), answer(label="a"))


def test_a_sample_of_the_program_is_graded_greedily_and_with_room(tmp_path: Path) -> None:
    """BootstrapFewShot scores its further rounds under a copy of the LM that draws samples."""
    connection = fake_connection([GOOD], tmp_path)
    sampling = connection.lm.metered().copy(rollout_id=7, temperature=1.0, max_tokens=4)
    for lm in (sampling, connection.lm):
        with connection.context(lm):
            assert score(judge(RUBRIC), example(), answer(label="a")).value == 1
    [request] = fake_engine(connection).requests
    assert request.temperature == 0
    assert request.max_tokens >= 400


def test_the_judges_step_is_none_of_the_programs(tmp_path: Path) -> None:
    connection = fake_connection([GOOD], tmp_path)
    with connection.context(), dspy.context(trace=[]):
        as_float(judge(RUBRIC))(example(), answer(label="a"))
        assert dspy.settings.trace == []


def test_a_model_of_its_own_is_asked_on_the_runs_meter(tmp_path: Path) -> None:
    mine = fake_connection([], tmp_path)
    other = fake_connection([GOOD], tmp_path)
    lm = mine.lm.metered()
    metric = judge(RUBRIC, model=other.model)
    with mine.context(lm):
        assert score(metric, example(), answer(label="a")).value == 1
    assert (lm.meter.usage.lm_calls, other.lm.meter.usage.lm_calls) == (1, 0)
    assert len(fake_engine(other).requests) == 1


def test_a_judge_without_a_model_says_so() -> None:
    with dspy.context(lm=None), pytest.raises(MetricError, match="no language model. Call it inside dspy.context"):
        score(judge(RUBRIC), example(), answer(label="a"))


def test_any_lm_of_dspys_will_do() -> None:
    with dspy.context(lm=DummyLM([{"reason": "Well.", "grade": "4"}]), adapter=dspy.ChatAdapter()):
        assert score(judge(RUBRIC), example(), answer(label="a")).value == 0.75


def test_an_evaluation_counts_unreadable_judgements_apart(tmp_path: Path) -> None:
    def reply(request: Any) -> Any:
        user = request.messages[-1].content
        if "[[ ## answer ## ]]" not in user:
            return {"label": "polite"}
        return "?" if "number 3\n" in user else {"reason": "So so.", "grade": 3}

    connection = fake_connection(reply, tmp_path, check_grammar=False)
    frame = pd.DataFrame({"text": [f"number {n}" for n in range(20)], "label": ["x"] * 20})
    frame["_row"] = frame["_group"] = [str(n) for n in range(20)]
    store = Store(str(tmp_path / "objects"))
    report = evaluate(
        dspy.Predict("text -> label"),
        frame,
        DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",)),
        weighted([judge(RUBRIC), (exact_match, 1)]),
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=store,
        threads=2,
    )
    assert (report.metric_errors, report.parse_failures) == (1, 0)
    assert (report.usage.lm_calls, report.judge_usage.lm_calls) == (20, 20)
    assert report.mean == pytest.approx(0.25 * 19 / 20)
    assert "So so." in store.read_frame(report.rows)["feedback"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rubric": " "}, "rubric is ' '"),
        ({"rubric": None}, "rubric is None"),
        ({"rubric": "x", "model": "gpt-4o"}, "model is 'gpt-4o'"),
        ({"rubric": "x", "scale": 1}, "scale is 1"),
        ({"rubric": "x", "scale": 11}, "scale is 11"),
        ({"rubric": "x", "scale": 2.5}, "scale is 2.5"),
        ({"rubric": "x", "fields": "label"}, "fields is 'label'. Write a list"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ProjectError, match=says.replace(".", r"\.")):
        judge(**arguments)


def test_judges_that_differ_have_other_sources_and_names() -> None:
    judges = [judge("a"), judge("b"), judge("a", model="openai/x"), judge("a", scale=3), judge("a", fields=["label"])]
    assert len({source_of(one) for one in judges}) == len({name_of(one) for one in judges}) == 5
    assert source_of(judge(" a ")) == source_of(judges[0])
    assert name_of(judge("a " * 50)).startswith("judge('a a a") and len(name_of(judge("a " * 50))) < 60


def test_the_embedded_model_keeps_to_the_form(connection: Connection) -> None:
    """It grades as it likes; what counts is that every judgement can be read."""
    lm = connection.lm.metered()
    with connection.context(lm):
        results = [
            score(judge("The answer names the right colour."), example(label="red"), answer(label=label))
            for label in ("red", "a very long story about the sea")
        ]
    assert all(result.value in (0, 0.25, 0.5, 0.75, 1) and result.feedback.startswith("Grade ") for result in results)
    assert lm.meter.truncated == 0
