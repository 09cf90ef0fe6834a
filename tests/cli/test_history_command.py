"""Earlier optimizations, as a person and a script see them."""

from __future__ import annotations

import json

import pytest

from dspy_toolkit.settings import Settings
from tests.optimizers.past_runs import record


def test_an_empty_home_says_how_to_begin_and_is_left_alone(command, home: Settings) -> None:
    home.path("mlflow.db").unlink()
    ended = command("history")
    assert (ended.code, ended.err) == (0, "")
    assert "No optimization is recorded" in ended.out
    assert "python -m flows.optimize_program --project NAME" in ended.out
    assert "router" in ended.out
    assert list(home.path().iterdir()) == []


def test_runs_are_one_line_each_the_newest_first(command, home: Settings) -> None:
    record(home, optimizer="gepa", search="a")
    record(home, project="shapes", optimizer="mipro", search="b")
    shown = command("history")
    assert (shown.code, shown.err) == (0, "")
    heading, first, second = shown.out.splitlines()
    assert heading.split() == ["when", "project", "optimizer", "calls", "val", "sealed", "outcome"]
    assert first.split()[1:] == ["shapes", "mipro", "281", "(280)", "+50.0", "refused"]
    assert second.split()[1:3] == ["colours", "gepa"]
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    assert len(command("history", "--limit", "1").out.splitlines()) == 2


def test_one_project_alone(command, home: Settings) -> None:
    record(home)
    record(home, project="shapes", search="b")
    assert "shapes" not in command("history", "--project", "colours").out
    other = command("history", "--project", "shape")
    assert (other.code, other.err) == (0, "")
    assert "No optimization of 'shape' is recorded. Did you mean shapes?" in other.out


def test_older_runs_are_counted(command, home: Settings) -> None:
    record(home)
    record(home, leave_out="profile")
    assert "1 older run says too little about what was asked for, and is left out." in " ".join(
        command("history").out.split()
    )


def test_the_history_as_json(command, home: Settings) -> None:
    assert json.loads(command("history", "--json").out) == []
    run_id = record(home)
    (run,) = json.loads(command("history", "--json").out)
    assert (run["run_id"], run["baseline"], run["val_gain"], run["sealed_gain"]) == (run_id, 0.25, 0.5, None)


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_is_a_number_from_one(command, limit: str) -> None:
    ended = command("history", "--limit", limit)
    assert ended.code == 2 and "--limit" in ended.err
