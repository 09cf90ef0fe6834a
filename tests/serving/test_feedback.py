"""What users say of answers, from the route to rows and verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.datasets.placements import Placement, remember
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.feedback import add_feedback, feedback_file, latest
from dspy_toolkit.gate import Ledger
from dspy_toolkit.pipeline.row_names import name_of_text
from dspy_toolkit.project import load_project
from dspy_toolkit.sections import ChallengerTable
from dspy_toolkit.serving import Feedback, read_feedback
from dspy_toolkit.serving.dataset import rows_of
from dspy_toolkit.serving.keys import add_key
from dspy_toolkit.serving.remembered import Remembered, Served
from dspy_toolkit.settings import Settings
from tests.cli.conftest import command  # noqa: F401
from tests.serving.conftest import fake, running, serving, wait_for


def entry(number: int, text: str, **fields: Any) -> Feedback:
    return Feedback(
        **{"at": datetime.now(UTC) + timedelta(seconds=number), "request_id": f"r{number}", "program": "questions"}
        | {"inputs": {"text": text}, "prediction": {"label": "person"}, "seconds": 0.1}
        | fields
    )


def test_feedback_is_joined_to_its_request_and_read_back(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    with running(settings) as server:
        asked = server.ask(text="How many?").json()
        say = lambda **said: server.http.post("/v1/feedback", json=said)  # noqa: E731
        assert say(request_id=asked["request_id"], rating=0, labels={"label": "number"}).status_code == 201
        wrong = {
            404: say(request_id="unknown", rating=1),
            422: say(request_id=asked["request_id"]),
        }
        worse = [
            say(request_id=asked["request_id"], rating=2),
            say(request_id=asked["request_id"], labels={"label": "neither"}),
            say(request_id=asked["request_id"], labels={"other": "number"}),
        ]
    assert {status: answer.status_code for status, answer in wrong.items()} == {404: 404, 422: 422}
    assert [answer.status_code for answer in worse] == [422] * 3
    (found,) = read_feedback(promoted.path(), "questions")
    assert found.inputs == {"text": "How many?"} and found.prediction == {"label": "person"}
    assert (found.rating, found.labels, found.version, found.cached) == (0, {"label": "number"}, 1, False)
    assert set(json.loads(feedback_file(promoted.path(), "questions").read_text())) == {
        "at", "request_id", "trace_id", "program", "version", "inputs", "prediction", "cached", "seconds", "rating", "labels",
    }  # fmt: skip


def test_a_key_speaks_of_its_own_requests_alone(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    keys = [{"Authorization": f"Bearer {add_key(promoted, name)[1]}"} for name in ("a", "b")]
    with running(settings) as server:
        asked = server.ask(text="Who?", headers=keys[0]).json()["request_id"]
        said = [server.http.post("/v1/feedback", json={"request_id": asked, "rating": 1}, headers=key) for key in keys]
    assert [answer.status_code for answer in said] == [201, 404]


def test_the_last_word_counts_and_what_it_leaves_out_holds() -> None:
    said = [entry(1, "a", rating=0.5), entry(2, "b"), entry(1, "a", labels={"label": "number"})]
    first, second = latest(said)
    assert (first.rating, first.labels, second.request_id) == (0.5, {"label": "number"}, "r2")


def test_a_line_that_is_none_is_named(promoted: Settings) -> None:
    add_feedback(promoted.path(), entry(1, "a"))
    path = feedback_file(promoted.path(), "questions")
    path.write_text(path.read_text() + '{"half": \n')
    with pytest.raises(DatasetError, match="line 2 is no feedback"):
        read_feedback(promoted.path(), "questions")
    assert read_feedback(promoted.path(), "nobody") == []


def test_rows_are_labelled_once_each_and_nothing_that_was_opened_comes_back(
    promoted: Settings, questions: Path
) -> None:
    home, project = promoted.path(), load_project(str(questions))
    for number, (text, said) in enumerate(
        {
            "new": {"labels": {"label": "number"}},
            "right": {"rating": 1},
            "unsure": {"rating": 0.7},
            "NEW ": {"labels": {"label": "person"}},
            "placed": {"labels": {"label": "number"}},
            "opened": {"labels": {"label": "number"}},
        }.items()
    ):
        add_feedback(home, entry(number, text, **said))
    add_feedback(home, entry(20, "new", labels={"label": "person"}))
    placement = Placement(row="x", group="x", split="train", text="placed")
    (home / "splits").mkdir()
    remember(home / "splits" / "questions.jsonl", [placement])
    ledger = Ledger(home / "sealed-openings.jsonl")
    ledger.grant([name_of_text("opened"), "else"], project="questions", candidate="a", champion="b")
    found = rows_of(promoted, project, "questions")
    assert {row["text"]: row["label"] for row in found.rows} == {"new": "person", "right": "person", "NEW ": "person"}
    assert (found.entries, found.unlabelled, found.known) == (7, 1, 2)


def test_the_command_writes_rows_that_the_toolkit_reads(
    promoted: Settings,
    questions: Path,
    command: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    output = tmp_path / "rows.jsonl"
    ended = command("data", "from-feedback", "questions", "--output", str(output), "--project", str(questions))
    assert ended.code == 1 and "no feedback" in ended.err
    add_feedback(promoted.path(), entry(1, "new", labels={"label": "number"}))
    ended = command("data", "from-feedback", "questions", "--output", str(output), "--project", str(questions))
    assert ended.code == 0, ended.err
    assert [json.loads(line) for line in output.read_text().splitlines()] == [{"text": "new", "label": "number"}]
    ended = command("data", "from-feedback", "questions", "--output", str(output), "--project", str(questions))
    assert ended.code == 1 and "is there already" in ended.err
    other = str(tmp_path / "other.jsonl")
    ended = command("data", "from-feedback", "questions", "--output", other, "--project", str(questions), "--json")
    assert json.loads(ended.out) == {"file": other, "rows": 1, "entries": 1, "unlabelled": 0, "known": 0}


def test_what_is_remembered_is_bounded() -> None:
    kept = Remembered(3)
    for number in range(10):
        kept.keep(Served(f"{number}", "anybody", "p", 1, "p", {}, {}, cached=False, seconds=0))
    assert len(kept) == 3 and kept.find("9") and not kept.find("6") and not kept.find("9", "somebody")
    large = Remembered(1000)
    for number in range(4):
        large.keep(Served(f"{number}", "anybody", "p", 1, "p", {"text": "a" * 30_000_000}, {}, cached=False, seconds=0))
    assert len(large) == 2


@pytest.mark.parametrize("answers", [False, True])
def test_a_challenger_is_compared_and_labels_say_who_was_better(
    promoted: Settings, save_questions: Callable[..., int], answers: bool
) -> None:
    def reply(request: Any) -> dict[str, Any]:
        return {"label": "number" if "numbers" in request.messages[0].content else "person"}

    save_questions("Say numbers.")
    settings, _ = fake(promoted, reply)
    table = ChallengerTable(version=2, share=1, answers=answers)
    with running(serving(settings, challengers={"questions": table})) as server:
        for number in range(24):
            asked = server.ask(text=f"How many {number}?").json()
            assert asked["version"] == (2 if answers else 1)
            pairs = server.back.service.challengers._pairs
            wait_for(lambda asked=asked, pairs=pairs: asked["request_id"] in pairs)
            server.http.post("/v1/feedback", json={"request_id": asked["request_id"], "labels": {"label": "number"}})
        verdict = server.http.get("/v1/programs/questions/challenger").json()
    assert (verdict["pairs"], verdict["champion_mean"], verdict["challenger_mean"]) == (24, 0.0, 1.0)
    assert verdict["outcome"] == "promoted"


def test_a_line_that_a_power_cut_left_half_is_passed_over(tmp_path: Path) -> None:
    add_feedback(tmp_path, entry(1, "one"))
    file = feedback_file(tmp_path, "questions")
    file.write_bytes(file.read_bytes() + b'{"at": "2026-')
    assert [each.request_id for each in read_feedback(tmp_path, "questions")] == ["r1"]
    add_feedback(tmp_path, entry(2, "two"))
    assert [each.request_id for each in read_feedback(tmp_path, "questions")] == ["r1", "r2"]
