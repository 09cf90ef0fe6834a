"""One row again: what was asked, said, read and scored; and no sealed row is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.datasets import read_file
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.replay import replay
from dspy_toolkit.project import data_part, load_project
from dspy_toolkit.settings import ObserveSettings
from dspy_toolkit.testing import fake_connection
from tests.optimizers.toys import Toy, by_instruction, records, right_answer, write_project


class Rows:
    """A project whose rows' splits are known."""

    def __init__(self, folder: Path) -> None:
        self.toy = Toy(folder)
        self.toy.knows = by_instruction
        self.records = records(90)
        self.place = str(write_project(folder / "project", self.records))
        project = load_project(self.place)
        context = Context(project, self.toy.settings)
        dataset = prepare(context, data_part(project, self.toy.settings, read_file(project.data_path)))
        self.frames = {name: context.store.read_frame(getattr(dataset, name)) for name in ("train", "val", "sealed")}

    def number(self, split: str) -> int:
        """Of the first row of a split: the spreadsheet's, whose first one holds the names."""
        text = self.frames[split]["text"].iloc[0]
        return 2 + next(at for at, row in enumerate(self.records) if row["text"] == text)

    def replay(self, row: object, connection: Any = None, **changes: Any) -> Any:
        connection = connection or self.toy.connect()
        settings = self.toy.settings.model_copy(update=changes)
        return replay(settings, self.place, str(row), connecting=lambda _: connection)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)


def test_a_row_is_run_and_scored(rows: Rows) -> None:
    number = rows.number("val")
    found = rows.replay(number)
    text = rows.records[number - 2]["text"]
    assert (found.number, found.split, found.inputs) == (number, "val", {"text": text})
    assert found.expected == {"label": right_answer(text)}
    (call,) = found.calls
    assert text in call.messages[-1]["content"] and found.answer["label"] in call.replies[0]
    assert found.score == float(found.answer == found.expected)
    assert rows.replay(found.row[:8]).inputs == found.inputs


def test_a_reply_that_cannot_be_read_is_shown_as_it_came(rows: Rows) -> None:
    connection = fake_connection(lambda request: "no label at all", rows.toy.settings, check_grammar=False)
    found = rows.replay(rows.number("train"), connection)
    assert found.answer is None and found.score == 0.0
    assert found.calls[0].replies == ("no label at all",)
    assert found.fault


METRIC = """
from dspy_toolkit import Score

def told(example, prediction):
    if prediction.label == "blue":
        raise ValueError("no blue")
    return Score(value=0.25, feedback=f"It is {example.label}, and {prediction.label} was said.")
"""


def test_what_the_metric_says_of_the_answer_is_told_and_so_is_why_it_fails(rows: Rows) -> None:
    place = Path(rows.place)
    place.with_name("telling.py").write_text(METRIC)
    place.write_text(place.read_text().replace("[dataset]", 'metric = "telling:told"\n[dataset]'))
    settings, number = rows.toy.settings, rows.number("val")
    expected = rows.records[number - 2]["label"]
    found = rows.replay(number, fake_connection([{"label": "green"}], settings))
    assert (found.score, found.feedback) == (0.25, f"It is {expected}, and green was said.")
    failed = rows.replay(number, fake_connection([{"label": "blue"}], settings))
    assert failed.score is None and failed.answer == {"label": "blue"}
    assert "no blue" in failed.feedback


def test_a_sealed_row_is_not_shown(rows: Rows) -> None:
    number = rows.number("sealed")
    with pytest.raises(DatasetError, match="is sealed"):
        rows.replay(number)
    assert rows.replay(number, observe=ObserveSettings(show_sealed_rows=True)).split == "sealed"


@pytest.mark.parametrize("row", ["0", "1", "9999", "abcdef", "x", ""])
def test_a_row_that_is_not_there(rows: Rows, row: str) -> None:
    with pytest.raises(DatasetError, match="has no row"):
        rows.replay(row)
