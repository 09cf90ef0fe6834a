"""The rows of a project: checked and shown without a trace, split for good, and sealed ones never shown."""

from __future__ import annotations

import csv
import json
from operator import itemgetter
from pathlib import Path

import pytest

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.pipeline.rows import check_data, show_row, show_rows, split_data, write_splits
from dspy_toolkit.pipeline.validate import validate
from dspy_toolkit.settings import ObserveSettings, Settings
from tests.optimizers.toys import records, write_project


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(write_project(tmp_path / "project", records(90)))


def rows_file(place: str) -> Path:
    return Path(place).parent / "colours.csv"


def test_looking_writes_nothing(home: Settings, place: str) -> None:
    before = sorted(home.path().rglob("*"))
    checked, shown = check_data(home, place), show_rows(home, place)
    assert validate(home, place)
    assert sorted(home.path().rglob("*")) == before
    report = split_data(home, place)
    assert checked.new == 90 and checked.report == report
    assert check_data(home, place).new == 0, "placed for good"
    assert show_rows(home, place) == shown
    assert len(shown) == report.splits["train"] + report.splits["val"]


def test_rows_are_shown_as_the_file_has_them_and_found_by_number_or_hash(home: Settings, place: str) -> None:
    with rows_file(place).open(newline="") as file:
        written = list(csv.DictReader(file))
    shown = show_rows(home, place)
    assert [row.number for row in shown] == sorted(row.number for row in shown)
    for row in shown:
        assert {**row.inputs, **row.outputs} == written[row.number - 2], "a spreadsheet's first row holds the names"
    assert {row.split for row in shown} == {"train", "val"}
    one = shown[0]
    assert show_row(home, place, str(one.number)) == show_row(home, place, one.row[:6]) == one
    only_val = show_rows(home, place, "val")
    assert only_val == [row for row in shown if row.split == "val"]


def test_sealed_rows_are_shown_only_where_the_settings_say_so(home: Settings, place: str, tmp_path: Path) -> None:
    opened = home.model_copy(update={"observe": ObserveSettings(show_sealed_rows=True)})
    sealed = show_rows(opened, place, "sealed")
    assert len(sealed) == check_data(home, place).report.splits["sealed"]
    for asked in (lambda: show_rows(home, place, "sealed"), lambda: show_row(home, place, str(sealed[0].number))):
        with pytest.raises(DatasetError, match="SHOW_SEALED_ROWS"):
            asked()
    assert set(write_splits(home, place, tmp_path / "closed")) == {"train.jsonl", "val.jsonl"}
    assert set(write_splits(opened, place, tmp_path / "opened")) == {"train.jsonl", "val.jsonl", "sealed.jsonl"}


def test_splits_are_written_for_another_tool_and_never_over_a_file(home: Settings, place: str, tmp_path: Path) -> None:
    written = write_splits(home, place, tmp_path / "out")
    lines = (tmp_path / "out" / "val.jsonl").read_text().splitlines()
    assert len(lines) == written["val.jsonl"]
    shown = [{**row.inputs, **row.outputs} for row in show_rows(home, place, "val")]
    assert sorted(map(json.loads, lines), key=itemgetter("text")) == sorted(shown, key=itemgetter("text"))
    with pytest.raises(DatasetError, match=r"train\.jsonl and val\.jsonl already"):
        write_splits(home, place, tmp_path / "out")


def test_rows_that_do_not_fit_are_listed_and_the_rest_is_looked_at(home: Settings, place: str) -> None:
    path = rows_file(place)
    path.write_text(path.read_text() + "nothing like it,mauve\n")
    found = check_data(home, place)
    (line,) = found.report.bad_rows
    assert "row 92" in line and '"mauve"' in line
    assert sum(found.report.splits.values()) == 90
    with pytest.raises(DatasetError, match="mauve"):
        split_data(home, place)
    assert check_data(home, place).new == 90, "a refused split has placed nothing"


def test_a_file_that_is_to_replace_the_projects(home: Settings, place: str, tmp_path: Path) -> None:
    split_data(home, place)
    kept = {row.row: row.split for row in show_rows(home, place)}
    next_file = tmp_path / "next.csv"
    next_file.write_text(rows_file(place).read_text() + "a row that is new and like no other,red\n")
    found = check_data(home, place, next_file)
    assert (found.file, found.new, found.report.rows) == (str(next_file), 1, 91)
    next_file.replace(rows_file(place))
    assert {row.row: row.split for row in show_rows(home, place) if row.row in kept} == kept


def test_a_copy_and_a_row_that_is_not_there(home: Settings, place: str) -> None:
    path = rows_file(place)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(DatasetError, match="Row 92 of colours.csv is in no split: it is a copy"):
        show_row(home, place, "92")
    for row in ("0", "1", "93", "abcdef", "²", ""):
        with pytest.raises(DatasetError, match="has no row"):
            show_row(home, place, row)
