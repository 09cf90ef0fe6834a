"""Several answers become one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import ProgramError, SettingsError
from dspy_toolkit.registry import promote
from dspy_toolkit.sections import EnsembleTable
from dspy_toolkit.serving.ensembles import Vote, agreement, combine
from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving


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
