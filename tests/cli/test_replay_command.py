"""`replay` at a terminal: every step is there, and the exit code says whether the row scored."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection
from tests.optimizers.toys import field_in, records, right_answer, write_project


def test_a_row_is_run_again_step_by_step(
    command, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_project(tmp_path / "project", records(60))
    with (place.parent / "colours.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    connection = fake_connection(
        lambda request: {"label": right_answer(field_in("text", request.messages[-1].content))}, home
    )
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", connection.model)
    monkeypatch.setenv("DSPY_TOOLKIT_OBSERVE__SHOW_SEALED_ROWS", "true")
    shown = command("replay", str(place), "7")
    assert shown.code == 0, shown.err
    row = rows[7 - 2]  # as a spreadsheet counts, whose first row holds the names
    for said in ("Classify.", row["text"][:40], row["label"], "The model's reply", "1.000", "Right."):
        assert said in shown.out
    wrong = {"red": "green", "green": "blue", "blue": "red"}
    other = fake_connection(
        lambda request: {"label": wrong[right_answer(field_in("text", request.messages[-1].content))]}, home
    )
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", other.model)
    failed = command("replay", str(place), "7", "--json")
    assert failed.code == 1
    found = json.loads(failed.out)
    assert found["score"] == 0.0
    assert found["feedback"] == f"label: expected '{row['label']}', got '{wrong[row['label']]}'."
    assert found["feedback"] in command("replay", str(place), "7").out
