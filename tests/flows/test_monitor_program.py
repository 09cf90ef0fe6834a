"""A live program is watched: quiet while it does as it did, an alert, a new search and a roll-back when it has fallen."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What flows report; that an event becomes an alert is in tests/system/test_make_up.py."""
    said: list[tuple[str, str]] = []

    def tell(kind: str, about: str, message: str, *, look: str, command: str) -> None:
        assert message and look and command
        said.append((kind, about))

    monkeypatch.setattr("tasks.watching.tell", tell)
    monkeypatch.setattr("tasks.show.tell", tell)
    return said


def serve(playground: Any, version: int, right: int, wrong: int, **changes: Any) -> None:
    """Write what serving writes: replies of a version, each labelled, some of them wrong."""
    with playground.rows.open() as file:
        rows = list(csv.DictReader(file))
    folder = playground.settings.path("feedback")
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(right + wrong):
        row = rows[number % len(rows)]
        other = "number" if row["label"] == "person" else "person"
        said = {
            "at": f"2026-11-27T01:{number // 60 % 60:02}:{number % 60:02}+00:00",
            "request_id": f"r{version}-{number}-{changes}",
            "trace_id": f"tr-{number}",
            "program": "questions",
            "version": version,
            "inputs": {"text": row["text"]},
            "prediction": {"label": row["label"] if number < right else other},
            "cached": False,
            "seconds": 0.25,
            "rating": 1.0,
            "labels": {"label": row["label"]},
        }
        lines.append(json.dumps(said | changes) + "\n")
    with (folder / "questions.jsonl").open("a") as file:
        file.writelines(lines)


def test_a_fall_is_told_and_rolled_back_and_nothing_else_is(
    playground: Any, told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.registry import champion
    from dspy_toolkit.tracking.looks import past_looks
    from dspy_toolkit.tracking.nights import past_nights
    from flows.monitor_program import monitor_program
    from flows.optimize_program import optimize_program

    started: list[str] = []
    monkeypatch.setattr("tasks.watching._begin_search", lambda found, location: started.append(location))
    assert monitor_program(playground.location) == {}, "nothing is live yet"
    decision = optimize_program(playground.location, optimizer="labelled", budget="60")
    assert decision.outcome == "promoted" and told == [("promoted", "questions")]
    version, settings = decision.version, playground.settings
    [night] = [each for each in past_nights(settings, "questions") if each["outcome"] == "promoted"]
    assert night["version"] == str(version) and night["sealed"] > night["champion"]

    told.clear()
    serve(playground, version, right=60, wrong=0)
    serve(playground, version, right=0, wrong=60, cached=True)  # no news about the program
    serve(playground, version, right=0, wrong=60, labels=None)
    serve(playground, version - 1, right=0, wrong=60)
    assert monitor_program() == {}, "a project that this machine does not know by its name"
    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__QUESTIONS__LOCATION", playground.location)
    assert "on 60 rows" in monitor_program(auto_rollback=True)["questions"]
    assert (told, started, champion(settings, "questions").version) == ([], [], version)
    [look] = past_looks(settings, "questions")
    assert (look.metrics["served_mean"], look.metrics["replies"], look.metrics["labelled"]) == (1.0, 180.0, 60.0)
    assert look.metrics["asked_again"] == 8 and look.metrics["otherwise"] == 0, "sealed rows are answered as they were"

    serve(playground, version, right=0, wrong=40, rating=0.0)
    monitor_program(playground.location)
    assert told == [("regression", "questions")] and started == [playground.location]
    assert champion(settings, "questions").version == version, "only when it is asked for"
    monitor_program(playground.location, auto_rollback=True)
    assert told[-2:] == [("regression", "questions"), ("rolled-back", "questions")]
    assert champion(settings, "questions").version == version - 1
    told.clear()
    monitor_program(playground.location, auto_rollback=True)
    assert champion(settings, "questions").version == version - 1, "the first one stays"


def test_new_labelled_rows_are_run_and_sealed_ones_stay_sealed(playground: Any, told: list[tuple[str, str]]) -> None:
    from dspy_toolkit.tracking.looks import past_looks
    from flows.monitor_program import monitor_program
    from flows.optimize_program import optimize_program

    assert optimize_program(playground.location, optimizer="labelled", budget="60").outcome == "promoted"
    things = [
        "boats",
        "lamps",
        "hats",
        "tents",
        "drums",
        "pearls",
        "kites",
        "stoves",
        "ropes",
        "clocks",
        "vases",
        "globes",
    ]
    towns = ["Lima", "Oslo", "Cairo", "Hanoi", "Perth", "Quito", "Sofia", "Turin", "Dakar", "Minsk"]
    new = [f"{1100 + 7 * n}: {thing} near {town}?" for n, thing in enumerate(things) for town in towns]
    with playground.rows.open("a") as file:
        file.writelines(f'"{text}",number\n' for text in new)
    monitor_program(playground.location)
    [look] = past_looks(playground.settings, "questions")
    assert 20 <= look.metrics["fresh_rows"] < len(new), "those that are not sealed"
    assert look.metrics["fresh_mean"] == 1.0


@pytest.mark.parametrize(
    ("said", "hot"),
    [
        ("CPU_Scheduler_Limit \t= 100\nCPU_Speed_Limit \t= 100\n", False),
        ("CPU_Speed_Limit \t= 62\n", True),
        ("Note: No thermal warning level has been recorded\n", False),
        ("", False),
    ],
)
def test_what_macos_says_of_its_speed_is_understood(said: str, hot: bool) -> None:
    from tasks.watching import is_throttled

    assert is_throttled(said) is hot


def test_a_full_disk_is_told(playground: Any, told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.watching import look_at_machine

    monkeypatch.setenv("DSPY_TOOLKIT_MONITOR__DISK_FREE_GB", "1e9")
    look_at_machine()
    [(kind, _)] = told
    assert kind == "disk-low" and Path(playground.settings.path()).is_dir()
