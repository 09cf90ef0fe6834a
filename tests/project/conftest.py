"""Two projects as text: one in TOML, one in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TOML = """\
name = "questions"
summary = "Classify a question by the type of its answer"
signature = 'text: str -> label: Literal["description", "entity", "human"]'
instructions = "Classify the question by the type of its answer."
[dataset]
source = "questions.csv"
inputs = ["text"]
outputs = ["label"]
"""

PYTHON = """\
import dspy
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.project import Project

class Answer(dspy.Signature):
    "Answer it."
    text: str = dspy.InputField()
    label: bool = dspy.OutputField()

class Program(dspy.Module):
    def __init__(self):
        self.answer = dspy.ChainOfThought(Answer)

    def forward(self, text):
        return self.answer(text=text)

def metric(example, prediction, trace=None):
    return example.label == prediction.label

project = Project(
    name="mine", summary="Mine", program=Program, metric=metric,
    dataset=DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",)),
    renames={"verdict": "label"},
)
LIMIT = 3
"""

ROWS = "text,label\nWho?,human\nWhat?,entity\n"


@pytest.fixture
def toml(tmp_path: Path) -> Callable[..., str]:
    """Write a project into a folder and give its location; `(old, new)` pairs edit the text."""

    def write(*edits: tuple[str, str], folder: str = "project", data: str = ROWS) -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        text = TOML
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (place / "questions.csv").write_text(data)
        (place / "questions.toml").write_text(text)
        return str(place / "questions.toml")

    return write


@pytest.fixture
def python_text() -> str:
    """A file with a program, a metric and the project `project`; its rows are in `rows.csv`."""
    return PYTHON
