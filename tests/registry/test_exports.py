"""Forms for those who have no toolkit: what is written loads, and what a form cannot hold is said."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import dspy
import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.registry.exports import Exported, export_bundle, export_dspy, export_prompt
from dspy_toolkit.settings import Settings

PROJECT = """
from datetime import date
from typing import Literal, Optional
import dspy
from dspy_toolkit import DatasetSpec, Project, exact_match
from dspy_toolkit.lm.levers import pull

class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("text -> note"), dspy.ChainOfThought("note -> label")
    def forward(self, text):
        return self.second(note=self.first(text=text).note)

class Own(dspy.Signature):
    "Say it."
    text: str = dspy.InputField()
    label: "Literal['a', 'b']" = dspy.OutputField()
    count: Optional[int] = dspy.OutputField()
    tags: list[str] = dspy.OutputField()
    day: date = dspy.OutputField()

def thought():
    return dspy.ChainOfThought(Own)

def levered():
    made = dspy.Predict("text -> label")
    pull(made, format="plain")
    return made

def of(name, make):
    spec = DatasetSpec(source="none.csv", inputs=("text",), outputs=("label",))
    return Project(name=name, summary="", program=make, metric=exact_match, dataset=spec)

thought, two, levered = of("thought", thought), of("two", Two), of("levered", levered)
"""


@pytest.fixture
def place(tmp_path: Path) -> str:
    file = tmp_path / "projects.py"
    file.write_text(PROJECT)
    return str(file)


def exported(home: Settings, place: str, name: str) -> tuple[Exported, Path]:
    folder = home.path("out")
    return export_dspy(home, f"{place}:{name}", folder), folder


def test_a_chain_of_thought_with_types_of_many_kinds_loads_with_dspy_alone(home: Settings, place: str) -> None:
    made, folder = exported(home, place, "thought")
    assert made.left_out == ()
    program = runpy.run_path(str(folder / "load.py"))["program"]
    assert isinstance(program, dspy.ChainOfThought)
    signature = program.predict.signature
    kinds = {name: str(field.annotation) for name, field in signature.fields.items() if name != "reasoning"}
    assert kinds == {
        "text": "<class 'str'>", "label": "typing.Literal['a', 'b']", "count": "typing.Optional[int]", "tags": "list[str]",
        "day": "<class 'datetime.date'>",
    }  # fmt: skip
    assert signature.instructions == "Say it."
    assert next(iter(signature.output_fields)) == "reasoning"


def test_a_module_of_the_projects_own_says_how_it_is_loaded(home: Settings, place: str) -> None:
    _, folder = exported(home, place, "two")
    said = runpy.run_path(str(folder / "load.py"))
    assert "program.load(STATE)" in (folder / "load.py").read_text() and "Two" in (folder / "load.py").read_text()
    assert set(json.loads(Path(said["STATE"]).read_text())) == {"first", "second.predict", "metadata"}


def test_a_lever_that_plain_dspy_does_not_know_is_named_and_left_out(home: Settings, place: str) -> None:
    made, folder = exported(home, place, "levered")
    assert made.left_out == ("format plain",)
    assert "format" not in json.loads((folder / "program.json").read_text())
    program = runpy.run_path(str(folder / "load.py"))["program"]
    pull(program, format=None)
    assert isinstance(program, dspy.Predict)


def test_messages_of_every_predictor_are_written(home: Settings, place: str) -> None:
    made = export_prompt(home, f"{place}:two", home.path("two.json"))
    found = json.loads(made.paths[0].read_text())["predictors"]
    assert [each["predictor"] for each in found] == ["first", "second.predict"]
    assert "{{note}}" in found[1]["messages"][-1]["content"]


def test_a_projects_own_program_is_no_bundle(home: Settings, place: str) -> None:
    with pytest.raises(RegistryError, match="Nothing of .* is promoted"):
        export_bundle(home, f"{place}:two", home.path("two.bundle"))
    assert not home.path("two.bundle").exists()
