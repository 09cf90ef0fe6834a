"""Several answers become one: the rules alone, and over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import ProgramError, SettingsError
from dspy_toolkit.registry import promote
from dspy_toolkit.sections import EnsembleTable
from dspy_toolkit.serving.ensembles import Vote, agreement, combine
from dspy_toolkit.settings import Settings
from tests.serving.conftest import SCORED, beside, fake, running, save_changed, serving, wait_for


async def no_judge(_: Sequence[Any]) -> int:
    raise AssertionError("nobody is to judge")


def one(rule: Any, *votes: Vote, judge: Any = no_judge) -> dict[str, Any]:
    return asyncio.run(combine(rule, votes, ["label"], judge))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_a_majority_is_one_of_the_most_frequent_answers_the_first_of_equals(said: list[str]) -> None:
    votes = [Vote(f"m{n}", {"label": label}) for n, label in enumerate(said)]
    counts = Counter(said)
    first = next(label for label in said if counts[label] == max(counts.values()))
    assert one("majority", *votes) == {"label": first}
    assert agreement(votes, {"label": first}, ["label"]) == pytest.approx(counts[first] / len(said))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 10)), min_size=1, max_size=6))
def test_weights_decide(said: list[tuple[str, float]]) -> None:
    votes = [Vote(f"m{n}", {"label": label}, weight) for n, (label, weight) in enumerate(said)]
    taken = one("weighted", *votes)["label"]
    total = {label: sum(weight for found, weight in said if found == label) for label in "ab"}
    assert total[taken] == pytest.approx(max(total.values()))


def test_mean_probabilities_can_take_what_no_member_took() -> None:
    chances = [{"a": 0.5, "b": 0.45, "c": 0.05}, {"c": 0.5, "b": 0.45, "a": 0.05}]
    votes = [Vote("x", {"label": max(each, key=each.__getitem__), "probabilities": each}) for each in chances]
    said = one("mean_probabilities", *votes)
    assert said["label"] == "b" and said["confidence"] == pytest.approx(0.45)
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(ProgramError, match="no probabilities"):
        one("mean_probabilities", Vote("x", {"label": "a"}))


def test_the_first_valid_one_and_the_judge() -> None:
    votes = [Vote("x", {"label": None}), Vote("y", {"label": "b"}), Vote("z", {"label": "c"})]
    assert one("first_valid", *votes) == {"label": "b"}

    async def second(answers: Sequence[Any]) -> int:
        assert len(answers) == 2
        return 1

    assert one("judge", votes[1], votes[1], votes[2], judge=second) == {"label": "c"}
    assert one("judge", votes[1], votes[1]) == {"label": "b"}


def test_over_http_members_answer_and_one_that_fails_does_not_fail_the_whole(
    promoted: Settings, save_questions: Callable[..., int]
) -> None:
    def reply(request: Any) -> Any:
        said = request.messages[0].content
        return {"label": "number"} if "numbers" in said else "cut [[" if "broken" in said else {"label": "person"}

    for text in ("Say numbers.", "This is broken."):
        save_questions(text)
    settings, _ = fake(promoted, reply, check_grammar=False)
    table = EnsembleTable(members=("questions@1", "questions@2", "questions@3"), rule="weighted", weights=(1, 3, 9))
    with running(serving(settings, ensembles={"several": table}, fall_back_on=())) as server:
        said = server.http.post("/v1/programs/several/predict?members=true", json={"text": "Who?"}).json()
        plain = server.ask("several", text="Who?").json()
        streamed = server.http.post("/v1/programs/several/stream", json={"text": "Who?"}).text
        listed = server.http.get("/v1/programs").json()["programs"]
    assert said["prediction"] == {"label": "number"} and said["agreement"] == 0.75
    assert [member.get("error") for member in said["members"]] == [None, None, "unreadable_reply"]
    assert "members" not in plain or plain["members"] is None
    assert "event: prediction" in streamed and '"number"' in streamed
    assert {"name": "several", "ensemble": {"members": list(table.members), "rule": "weighted"}} in listed


NUMBER, PERSON = {"label": "number"}, {"label": "person"}
BOTH = EnsembleTable(members=("questions", "second"))


@pytest.mark.parametrize(
    ("rule", "weights", "said", "label", "agreed"),
    [
        ("majority", (), (PERSON, NUMBER, NUMBER), "number", 2 / 3),
        ("majority", (), (PERSON, NUMBER, "cut [["), "person", 1 / 2),
        ("weighted", (5, 1, 1), (PERSON, NUMBER, NUMBER), "person", 5 / 7),
        ("first_valid", (), ("cut [[", NUMBER, PERSON), "number", 1 / 2),
    ],
)
def test_over_http_each_rule_decides(
    promoted: Settings, rule: Any, weights: Any, said: tuple[Any, ...], label: str, agreed: float
) -> None:
    settings, engine = fake(promoted, lambda request: said[_number_of(request)], check_grammar=False)
    table = _versions(settings, rule, weights)
    with running(serving(settings, ensembles={"several": table}, fall_back_on=())) as server:
        found = server.http.post("/v1/programs/several/predict?members=true", json={"text": "Who?"}).json()
        metrics = server.http.get("/metrics").text
    assert found["prediction"] == {"label": label} and found["agreement"] == pytest.approx(agreed)
    assert [member.get("prediction", "cut [[") for member in found["members"]] == list(said)
    assert {_number_of(request) for request in engine.requests} == {0, 1, 2}
    failed = [name for name, each in zip(table.members, said, strict=True) if each == "cut [["]
    assert found["usage"]["lm_calls"] == len(said) - len(failed)
    for name in failed:
        assert f'member_failures_total{{member="{name}",program="several"}} 1.0' in metrics
    assert metrics.count("dspy_toolkit_serving_member_failures_total{") == len(failed)


def test_over_http_mean_probabilities_decide(promoted: Settings) -> None:
    chances = ({"number": 0.6, "person": 0.4}, {"number": 0.6, "person": 0.4}, {"number": 0.1, "person": 0.9})
    settings, _ = fake(promoted, lambda request: chances[_number_of(request)])
    table = _versions(settings, "mean_probabilities", format="plain", labels={"label": SCORED})
    with running(serving(settings, ensembles={"several": table})) as server:
        found = server.http.post("/v1/programs/several/predict?members=true", json={"text": "Who?"}).json()
    said = found["prediction"]
    # Two of three take the other label: what decides is the mean.
    assert [member["prediction"]["label"] for member in found["members"]] == ["number", "number", "person"]
    assert said["label"] == "person" and said["confidence"] == pytest.approx((0.4 + 0.4 + 0.9) / 3, abs=1e-6)
    assert said["probabilities"] == pytest.approx({"number": 1.3 / 3, "person": 1.7 / 3}, abs=1e-6)
    assert found["agreement"] == pytest.approx(1 / 3)


def test_over_http_a_judge_decides_where_members_differ(promoted: Settings) -> None:
    def reply(request: Any) -> Any:
        return PERSON if "all agree" in request.messages[-1].content else (NUMBER, PERSON, NUMBER)[_number_of(request)]

    settings, _ = fake(promoted, reply)
    judging, judge = fake(promoted, [{"best": 2}, {"best": 7}])
    role = settings.judge.model_copy(update={"model": judging.lm.model})
    settings = settings.model_copy(update={"judge": role})
    with running(serving(settings, ensembles={"several": _versions(settings, "judge")})) as server:
        first = server.ask("several", text="Who wrote Emma?").json()
        unanimous = server.http.post("/v1/programs/several/predict?members=true", json={"text": "all agree"}).json()
        asked_by_then = len(judge.requests)
        wild = server.ask("several", text="How many are there?").json()
    assert first["prediction"] == PERSON
    question = judge.requests[0].messages[-1].content
    assert "Who wrote Emma?" in question and '1. {"label": "number"}\n2. {"label": "person"}' in question
    assert "3. " not in question, "an answer that two gave is judged once"
    assert unanimous["prediction"] == PERSON and unanimous["agreement"] == 1 and asked_by_then == 1
    assert wild["prediction"] == NUMBER, "a number that no answer has: the first one is taken"
    assert first["model"] == settings.lm.model
    assert [said["usage"]["lm_calls"] for said in (first, unanimous)] == [4, 3], "the judge's call counts too"


@pytest.mark.parametrize(
    ("replies", "options", "code"),
    [
        ({"best": 2}, {"seconds_per_token": 5.0}, "deadline_exceeded"),
        ("no number at all", {"check_grammar": False}, "unreadable_reply"),
    ],
)
def test_a_judge_that_hangs_or_fails_leaves_it_to_most_members(
    promoted: Settings, replies: Any, options: dict[str, Any], code: str
) -> None:
    settings, _ = fake(promoted, lambda request: (NUMBER, PERSON, PERSON)[_number_of(request)])
    judging, judge = fake(promoted, lambda _: replies, **options)
    settings = settings.model_copy(update={"judge": settings.judge.model_copy(update={"model": judging.lm.model})})
    with running(serving(settings, ensembles={"several": _versions(settings, "judge")})) as server:
        assert server.ask("questions@2", text="Is everything imported?").status_code == 200
        said = server.ask("several", text="Who wrote Emma?", headers={"X-Deadline-Seconds": "4"})
        wait_for(lambda: judge.stats().active == 0)
    assert said.status_code == 200, said.text
    assert said.json()["prediction"] == PERSON
    assert said.headers["x-fell-back"] == f"judge on {judging.lm.model}: {code}"


def _number_of(request: Any) -> int:
    """Which member asks: from 0."""
    return next(number for number in range(3) if f"Rule {number}." in request.messages[0].content)


def _versions(settings: Settings, rule: Any, weights: Any = (), **levers: Any) -> EnsembleTable:
    """Three versions more of `questions` as members, each with levers, known by their instructions."""
    members = [save_changed(settings, f"Rule {number}.", **levers) for number in range(3)]
    return EnsembleTable(members=tuple(f"questions@{member}" for member in members), rule=rule, weights=weights)


def test_a_member_that_hangs_does_not_fail_the_whole(promoted: Settings, tmp_path: Path) -> None:
    settings, _ = fake(promoted, lambda _: PERSON)
    slow, hanging = fake(promoted, lambda _: NUMBER, seconds_per_token=0.5)
    settings = beside(settings, tmp_path / "second.toml", slow.lm.model)
    with running(serving(settings, ensembles={"both": BOTH})) as server:
        assert server.ask(text="Is everything imported?").status_code == 200
        said = server.http.post(
            "/v1/programs/both/predict?members=true", json={"text": "Who?"}, headers={"X-Deadline-Seconds": "1"}
        )
        wait_for(lambda: hanging.stats().active == 0)
    assert said.status_code == 200, said.text
    assert said.json()["prediction"] == PERSON
    assert [member.get("error") for member in said.json()["members"]] == [None, "deadline_exceeded"]
    assert (hanging.stats().cancelled, hanging.stats().finished) == (1, 0)


def test_members_run_at_once(promoted: Settings, tmp_path: Path) -> None:
    """Each waits, as it is asked, until the other one is asked too."""
    both = threading.Barrier(2, timeout=10)

    def reply(request: Any) -> Any:
        both.wait()
        return PERSON

    settings, _ = fake(promoted, reply)
    other, _ = fake(promoted, reply)
    settings = beside(settings, tmp_path / "second.toml", other.lm.model)
    with running(serving(settings, ensembles={"both": BOTH})) as server:
        said = server.http.post("/v1/programs/both/predict?members=true", json={"text": "Who?"}).json()
    assert [member.get("prediction") for member in said["members"]] == [PERSON, PERSON]
    assert said["agreement"] == 1 and not both.broken


def test_an_ensemble_that_makes_no_sense_is_refused() -> None:
    for wrong in (
        {"members": ["a"]},
        {"members": ["a", "b"], "weights": [1]},
        {"members": ["a", "b"], "rule": "weighted"},
    ):
        with pytest.raises(ValueError):
            EnsembleTable.model_validate(wrong)


def test_a_name_that_is_taken_is_refused(promoted: Settings) -> None:
    from dspy_toolkit.serving.service import Service

    promote(promoted, "questions", 1)
    settings, _ = fake(promoted, [])
    table = EnsembleTable(members=("questions@1", "questions"))
    with pytest.raises(SettingsError, match="has the name of a program"):
        Service(serving(settings, programs=("questions",), ensembles={"questions": table})).load()
