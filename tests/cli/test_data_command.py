"""Rows from the command line: checked, split, shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_toolkit.settings import Settings
from tests.optimizers.toys import records, write_project


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", records(90))


def test_rows_are_checked_and_the_exit_code_is_for_ci(command, home: Settings, place: Path) -> None:
    looked = command("data", "check", str(place))
    assert looked.code == 0, looked.err
    for said in ("colours.csv", "90", "not placed yet", "sealed", "red"):
        assert said in looked.out
    rows = place.parent / "colours.csv"
    first = rows.read_text().splitlines()[1]
    text, label = first.rsplit(",", 1)
    other = "red" if label != "red" else "blue"
    rows.write_text(rows.read_text() + f"{first}\n{text},{other}\nsomething else altogether,mauve\n")
    wrong = command("data", "check", str(place))
    assert wrong.code == 1
    assert "mauve" in wrong.out and "contradict" in wrong.out and "near-duplicates" in wrong.out
    report = json.loads(command("data", "check", str(place), "--json").out)["report"]
    assert (report["rows"], report["duplicates"], len(report["contradictions"])) == (93, 1, 1)
    missing = command("data", "check", str(place), "--file", "nowhere.csv")
    assert missing.code == 1 and "nowhere.csv does not exist" in missing.err


def test_rows_are_split_and_written(command, home: Settings, place: Path, tmp_path: Path) -> None:
    done = command("data", "split", str(place), "--to", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "train.jsonl" in done.out and not (tmp_path / "out" / "sealed.jsonl").exists()
    again = command("data", "split", str(place), "--to", str(tmp_path / "out"))
    assert again.code == 1 and "already" in again.err
    report = json.loads(command("data", "split", str(place), "--json").out)["report"]
    assert sum(report["splits"].values()) == 90


def test_rows_are_shown(command, home: Settings, place: Path) -> None:
    shown = command("data", "show", str(place), "--limit", "5")
    assert shown.code == 0, shown.err
    assert "more: --limit" in shown.out
    rows = json.loads(command("data", "show", str(place), "--split", "val", "--limit", "99", "--json").out)
    assert rows and all(row["split"] == "val" for row in rows)
    one = command("data", "show", str(place), rows[0]["row"][:8])
    assert one.code == 0 and rows[0]["row"] in one.out and rows[0]["inputs"]["text"][:30] in one.out
    assert json.loads(command("data", "show", str(place), str(rows[0]["number"]), "--json").out) == rows[0]
    sealed = command("data", "show", str(place), "--split", "sealed")
    assert sealed.code == 1 and "SHOW_SEALED_ROWS" in sealed.err
    strange = command("data", "show", str(place), "--split", "test")
    assert strange.code != 0 and "train" in strange.err + strange.out
