"""Answers to a file of inputs are kept as they come, and a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.predicting import write_answers
from dspy_toolkit.predicting.writing import PART
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine

ROWS = [{"text": f"thing {number}"} for number in range(20)]


@pytest.fixture
def loaded(questions: Path, home: Settings) -> LoadedProgram:
    return load_program(home, str(questions))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_was_stopped_goes_on(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    to, broken = tmp_path / "answers.jsonl", [True]

    def reply(request: Any) -> Any:
        number = int(request.messages[-1].content.partition("thing ")[2].split()[0])
        if number == 13 and broken[0]:
            return EngineFailed("It broke.")
        return {"label": "number" if number % 2 else "person"}

    connection = fake_connection(reply, home, model="mlx/fake@resumes")
    with pytest.raises(Exception) as failed:
        write_answers(loaded, ROWS, connection, to, threads=2)
    assert isinstance(root_error(failed.value), EngineFailed)
    kept = lines(to)
    assert len(kept) == PART * 2 and kept == [{"label": "number" if at % 2 else "person"} for at in range(len(kept))]
    broken[0] = False
    asked = len(fake_engine(connection).requests)
    assert write_answers(loaded, ROWS, connection, to, threads=2) == 0
    assert lines(to) == [{"label": "number" if at % 2 else "person"} for at in range(20)]
    # None that was kept was asked again; some that were answered after the last part may be known to the cache.
    again = [request.messages[-1].content for request in fake_engine(connection).requests[asked:]]
    assert not any(f"thing {at}\n" in content for content in again for at in range(len(kept)))
    before = to.read_bytes()
    assert write_answers(loaded, ROWS, connection, to, threads=2) == 0
    assert to.read_bytes() == before


def test_the_caller_is_told_how_far_it_is(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    connection, seen = fake_connection(lambda request: {"label": "person"}, home), list[tuple[int, int]]()
    rows = ROWS[: PART + 1]
    for _ in range(2):
        write_answers(loaded, rows, connection, tmp_path / "a", progress=lambda *now: seen.append(now))
    assert seen == [(0, PART + 1), (PART, PART + 1), (PART + 1, PART + 1), (PART + 1, PART + 1)]


def test_a_reply_that_cannot_be_read_has_its_line(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "nothing", home, check_grammar=False)
    assert write_answers(loaded, ROWS[:3], connection, tmp_path / "a", threads=2) == 3
    assert all(set(line) == {"error"} for line in lines(tmp_path / "a"))
    assert write_answers(loaded, ROWS[:3], connection, tmp_path / "a", threads=2) == 3


def test_answers_of_another_run_are_not_mixed(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    to = tmp_path / "a"
    connection = fake_connection(lambda request: {"label": "person"}, home)
    write_answers(loaded, ROWS[:3], connection, to, threads=2)
    before = to.read_bytes()
    with pytest.raises(DatasetError, match="differs in inputs"):
        write_answers(loaded, ROWS[:4], connection, to, threads=2)
    with pytest.raises(DatasetError, match="differs in model"):
        write_answers(loaded, ROWS[:3], fake_connection(lambda request: {"label": "person"}, home), to, threads=2)
    assert to.read_bytes() == before
    (tmp_path / "theirs").write_text("{}\n")
    with pytest.raises(DatasetError, match="does not say what it is"):
        write_answers(loaded, ROWS[:3], connection, tmp_path / "theirs", threads=2)
