"""Forms for those who have no toolkit: what is written loads, and what a form cannot hold is said."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import dspy
import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.registry.exports import Exported, export_bundle, export_dspy, export_prompt
from dspy_toolkit.registry.messages import messages_of
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import LMSettings, Settings

PROJECT = """
from datetime import date
from typing import Literal, Optional
import dspy
from pydantic import BaseModel
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

class Advice(BaseModel):
    batch: int

class Part(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("text -> note: list[int]"), dspy.Predict(List)

class List(dspy.Signature):
    note: list[int] = dspy.InputField()
    advice: list[Advice] = dspy.OutputField()

class Bounded(dspy.Signature):
    text: str = dspy.InputField()
    count: int = dspy.OutputField(ge=1)

def advice():
    return dspy.ChainOfThought(dspy.Signature("text -> label").append("advice", dspy.OutputField(), Advice))

def arrow():
    return dspy.Predict(dspy.Signature("text -> label").append("way", dspy.OutputField(), Literal["a -> b", "c"]))

def levered():
    made = dspy.Predict("text -> label")
    pull(made, format="plain")
    return made

def of(name, make):
    spec = DatasetSpec(source="none.csv", inputs=("text",), outputs=("label",))
    return Project(name=name, summary="", program=make, metric=exact_match, dataset=spec)

thought, two, levered = of("thought", thought), of("two", Two), of("levered", levered)
part, advice, arrow = of("part", Part), of("advice", advice), of("arrow", arrow)
bounded = of("bounded", lambda: dspy.Predict(Bounded))
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


ALONE = """
import json, runpy, sys
sys.modules["dspy_toolkit"] = None  # any import of it fails
import dspy

class Catching(dspy.LM):
    def __call__(self, prompt=None, messages=None, **options):
        raise KeyboardInterrupt(messages)

def sent(predictor):
    with dspy.context(lm=Catching("openai/none"), adapter=dspy.ChatAdapter(), warn_on_type_mismatch=False):
        try:
            predictor(**{name: "{{" + name + "}}" for name in predictor.signature.input_fields})
        except KeyboardInterrupt as caught:
            return caught.args[0]

said = {}
for folder in sys.argv[1:]:
    found = runpy.run_path(folder + "/load.py")
    made = found["predictors"] if "predictors" in found else {"": found["program"].predictors()[0]}
    said[folder] = {name: sent(predictor) for name, predictor in made.items()}
print(json.dumps(said))
"""


def test_load_py_sends_what_the_program_sends_with_dspy_alone(home: Settings, place: str) -> None:
    remote = home.model_copy(update={"lm": LMSettings(model="openai/none")})  # asked by DSPy's own ChatAdapter
    folders = {name: home.path(name) for name in ("thought", "two", "part")}
    left_out = {name: export_dspy(home, f"{place}:{name}", folder).left_out for name, folder in folders.items()}
    assert left_out == {
        "thought": (),
        "two": ("the code of Two",),
        "part": ("the code of Part", "the type list[Advice] of advice, and so its predictor"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, folders.values())], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    for name, folder in folders.items():
        prompts = messages_of(load_program(home, f"{place}:{name}").program, remote)
        sent = {prompt.predictor: list(prompt.messages) for prompt in prompts if prompt.predictor != "second"}
        assert said[str(folder)] == (sent if name != "thought" else {"": sent["predict"]})


def test_a_type_or_constraint_that_python_alone_does_not_have_is_named(home: Settings, place: str) -> None:
    made, folder = exported(home, place, "advice")
    assert made.left_out == ("the type Advice of advice, and so its predictor",)
    said = runpy.run_path(str(folder / "load.py"))
    assert "program" not in said and "the type Advice of advice" in (folder / "load.py").read_text()
    assert set(json.loads(said["STATE"].read_text())) == {"predict", "metadata"}
    assert exported(home, place, "bounded")[0].left_out == ("the constraints of count",)
    assert exported(home, place, "arrow")[0].left_out[0].startswith("the type Literal['a -> b'")


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
