"""Two answers, asked about in both orders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import MetricError, ProjectError
from dspy_toolkit.evaluation import evaluate
from dspy_toolkit.metrics import name_of, pairwise, resolve_metric, score, source_of
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.evaluation.made import SPEC, rows
from tests.metrics.cases import answer, example

RUBRIC = "The better answer is the shorter one."


def shown(request: Any) -> tuple[str, str]:
    user = request.messages[-1].content
    first, second = user.split("[[ ## first ## ]]\n")[1].split("[[ ## second ## ]]\n")
    return first.strip(), second.split("\n\n")[0].strip()


def shorter(request: Any) -> Any:
    """A judge with a mind of its own."""
    first, second = map(len, shown(request))
    better = "tie" if first == second else "first" if first < second else "second"
    return {"reason": f"{better} it is.", "better": better}


def always(place: str) -> Callable[[Any], Any]:
    return lambda request: {"reason": "Because.", "better": place}


@pytest.mark.parametrize(
    ("ours", "value", "words"), [("a", 1, "Better"), ("xyz", 0.5, "As good"), ("long", 0, "Worse")]
)
def test_an_answer_is_compared_with_the_expected_one(tmp_path: Path, ours: str, value: float, words: str) -> None:
    connection = fake_connection(shorter, tmp_path)
    with connection.context():
        seen = score(pairwise(RUBRIC), example(label="abc"), answer(label=ours))
    assert seen.value == value
    assert seen.feedback.startswith(f"{words}")
    assert seen.measures == {"position_bias": 0.0, "first_place": 0.5}
    requests = fake_engine(connection).requests
    assert [shown(request) for request in requests] == [
        (f"label: {ours}", "label: abc"),
        ("label: abc", f"label: {ours}"),
    ]
    assert RUBRIC in requests[0].messages[0].content and requests[0].grammar


@pytest.mark.parametrize(("place", "first_place"), [("first", 1.0), ("second", 0.0)])
def test_a_judge_that_prefers_a_place_makes_ties_and_is_counted(tmp_path: Path, place: str, first_place: float) -> None:
    connection = fake_connection(always(place), tmp_path)
    with connection.context():
        seen = score(pairwise(RUBRIC), example(label="abc"), answer(label="a"))
    assert seen.value == 0.5
    assert "changed with the order" in seen.feedback
    assert seen.measures == {"position_bias": 1.0, "first_place": first_place}


@pytest.mark.parametrize("judged", [shorter, always("first"), always("second"), always("tie")])
def test_changing_sides_changes_the_verdict_to_its_opposite(tmp_path: Path, judged: Any) -> None:
    connection = fake_connection(judged, tmp_path)
    metric, case = pairwise(RUBRIC), example()
    with connection.context():
        for ours, theirs in (("a", "bbb"), ("aa", "bb"), ("aaa", "b")):
            forth = metric.compare(case, answer(label=ours), answer(label=theirs))
            back = metric.compare(case, answer(label=theirs), answer(label=ours))
            assert forth.value == 1 - back.value
            assert (forth.agreed, forth.first_place) == (back.agreed, back.first_place)


def test_the_report_has_the_rate_of_position_bias(tmp_path: Path) -> None:
    """The first shown is preferred where the answers are equally long."""

    def reply(request: Any) -> Any:
        if "[[ ## first ## ]]" not in request.messages[-1].content:
            return {"label": "abc" if "text 000" in request.messages[-1].content else "a"}
        said = shorter(request)
        return said if said["better"] != "tie" else {"reason": "The first.", "better": "first"}

    connection, store = fake_connection(reply, tmp_path), Store(str(tmp_path / "objects"))
    report = evaluate(
        dspy.Predict("text -> label"),
        rows(*["xyz"] * 4),
        SPEC,
        pairwise(RUBRIC),
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=store,
    )
    assert report.mean == (0.5 + 3) / 4
    assert report.measures == {"position_bias": 0.25, "first_place": pytest.approx((1 + 3 * 0.5) / 4)}
    assert (report.usage.lm_calls, report.judge_usage.lm_calls) == (4, 8)


def test_without_an_expected_answer_or_a_readable_judgement_there_is_no_score(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "Both!", tmp_path, check_grammar=False)
    with connection.context():
        with pytest.raises(MetricError, match="no output to compare with. Give the dataset outputs, or use judge"):
            score(pairwise(RUBRIC), example(), answer(label="a"))
        with pytest.raises(MetricError, match="the judgement cannot be read: 'Both!'"):
            score(pairwise(RUBRIC), example(label="b"), answer(label="a"))


def test_a_table_makes_one_and_its_options_are_checked() -> None:
    made = resolve_metric({"name": "pairwise", "rubric": RUBRIC, "fields": ["label"]}, None)
    assert made == pairwise(RUBRIC, fields=["label"])
    assert name_of(made) == "pairwise('The better answer is the shorter one.', fields=('label',))"
    assert source_of(made) != source_of(pairwise(RUBRIC))
    for table, says in (
        ({"name": "pairwise"}, "rubric is None"),
        ({"name": "pairwise", "rubric": "x", "model": "gpt-4o"}, "model is 'gpt-4o'"),
        ({"name": "pairwise", "rubric": "x", "scale": 5}, "no option 'scale'"),
    ):
        with pytest.raises(ProjectError, match=says):
            resolve_metric(table, None)
    with pytest.raises(ProjectError, match="'pairwise' needs options"):
        resolve_metric("pairwise", None)
