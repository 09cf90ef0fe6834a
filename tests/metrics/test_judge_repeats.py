"""A judge that is asked several times about one answer."""

from __future__ import annotations

from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest

from dspy_toolkit.errors import MetricError, ProjectError
from dspy_toolkit.metrics import judge, name_of, resolve_metric, score, source_of
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.metrics.cases import answer, example

GRADES = {1: 4, 2: 1, 3: 4, 4: 5, 5: 2}


def by_seed(request: Any) -> Any:
    return {"reason": f"Sample {request.seed}.", "grade": GRADES[request.seed]}


def judged(tmp_path: Path, metric: Any, replies: Any = by_seed, home: Any = None, **options: Any) -> Any:
    connection = fake_connection(replies, home or tmp_path, **options)
    with connection.context():
        return score(metric, example(), answer(label="a")), fake_engine(connection)


def test_the_mean_of_samples_counts_and_their_spread_is_kept(tmp_path: Path) -> None:
    seen, engine = judged(tmp_path, judge("Good?", repeats=5))
    assert seen.value == pytest.approx((3.2 - 1) / 4)
    assert seen.measures == {"judge_spread": pytest.approx(pstdev([0.75, 0, 0.75, 1, 0.25]))}
    assert seen.feedback == "Grades 4, 1, 4, 5, 2 of 5. Sample 1."
    assert [request.seed for request in engine.requests] == [1, 2, 3, 4, 5]
    assert {request.temperature for request in engine.requests} == {1.0}, "at 0 all five would be one"


def test_or_the_most_frequent_grade(tmp_path: Path) -> None:
    seen, _ = judged(tmp_path, judge("Good?", repeats=5, reduce="majority"))
    assert seen.value == 0.75
    seen, _ = judged(tmp_path, judge("Good?", repeats=2, reduce="majority"))
    assert seen.value == 0, "of equally frequent ones the lowest"


def test_the_judges_own_temperature_holds_where_it_samples(tmp_path: Path) -> None:
    home = Settings(home=tmp_path, judge={"temperature": 0.4})  # pyright: ignore[reportArgumentType]
    _, engine = judged(tmp_path, judge("Good?", repeats=2), home=home)
    assert {request.temperature for request in engine.requests} == {0.4}


def test_a_judge_that_is_sure_has_no_spread_and_one_grade(tmp_path: Path) -> None:
    seen, _ = judged(tmp_path, judge("Good?", repeats=3), lambda request: {"reason": "Fine.", "grade": 5})
    assert (seen.value, seen.measures) == (1, {"judge_spread": 0})


def test_unreadable_judgements_are_left_out_until_they_are_most(tmp_path: Path) -> None:
    def reply(request: Any) -> Any:
        return "?" if request.seed <= bad else by_seed(request)

    bad = 2
    seen, _ = judged(tmp_path, judge("Good?", repeats=4), reply, check_grammar=False)
    assert seen.feedback == "Grades 4, 5 of 5. Sample 3."
    bad = 3
    with pytest.raises(MetricError, match="the judgement cannot be read: '\\?'"):
        judged(tmp_path, judge("Good?", repeats=4), reply, check_grammar=False)


def test_options_are_checked_named_and_part_of_the_source() -> None:
    made = resolve_metric({"name": "judge", "rubric": "Good?", "repeats": 3, "reduce": "majority"}, None)
    assert made == judge("Good?", repeats=3, reduce="majority")
    assert name_of(made) == "judge('Good?', repeats=3, reduce='majority')"
    assert len({source_of(judge("Good?", repeats=n)) for n in (1, 2, 3)}) == 3
    for options, says in (({"repeats": 0}, "repeats is 0"), ({"repeats": 26}, "1 to 25"), ({"reduce": "max"}, "'max'")):
        with pytest.raises(ProjectError, match=says):
            judge("Good?", **options)
