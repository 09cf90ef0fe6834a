"""What of a program is kept, what counts as its prompt, and that keeping loses nothing of it."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from dspy_toolkit.lm.adapter import GrammarAdapter
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Box(BaseModel):
    width: int
    tags: list[str]


class Everything(dspy.Signature):
    """Measure."""

    train: str = dspy.InputField()
    lm: Box = dspy.InputField()
    size: Size = dspy.OutputField()
    boxes: list[Box] = dspy.OutputField()
    flag: bool = dspy.OutputField()
    metadata: float = dspy.OutputField()
    kind: Literal["a", "b"] = dspy.OutputField()


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("text -> note")
        self.second = dspy.ChainOfThought("note -> label: bool")

    def forward(self, text: str) -> dspy.Prediction:
        return self.second(note=self.first(text=text).note)


def demo(**changes: Any) -> dspy.Example:
    box = Box(width=2, tags=["x", "é"])
    values = {"train": "t", "lm": box, "size": Size.LARGE, "boxes": [box], "flag": True, "metadata": 0.5, "kind": "a"}
    return dspy.Example(**values | changes)


def with_demos(*demos: dspy.Example) -> dspy.Predict:
    program = dspy.Predict(Everything)
    program.demos = list(demos)
    return program


def rendered(program: dspy.Predict) -> list[dict[str, Any]]:
    inputs = {"train": "now", "lm": Box(width=1, tags=[])}
    return GrammarAdapter().format(program.signature, program.demos, inputs)


def test_typed_demonstrations_reach_the_model_unchanged_after_keeping() -> None:
    program = with_demos(demo(augmented=True), demo(train="u", size=Size.SMALL))
    state = state_of(program)
    assert json.loads(json.dumps(state)) == state
    loaded = fill(dspy.Predict(Everything), state)
    assert rendered(loaded) == rendered(program)
    assert prompt_of(loaded) == prompt_of(program)
    assert state_of(loaded) == state


def test_several_predictors_keep_their_names() -> None:
    program = Two()
    program.first.demos = [dspy.Example(text="t", note="n")]
    program.second.predict.signature = program.second.predict.signature.with_instructions("Judge the note.")
    loaded = fill(Two(), state_of(program))
    assert prompt_of(loaded) == prompt_of(program) != prompt_of(Two())
    assert loaded.first.demos[0]["note"] == "n"


@pytest.mark.parametrize("name", ["train", "lm", "metadata", "kind"])
def test_a_field_of_any_name_counts_as_prompt(name: str) -> None:
    changed = {"train": "other", "lm": Box(width=3, tags=[]), "metadata": 0.25, "kind": "b"}
    assert prompt_of(with_demos(demo())) != prompt_of(with_demos(demo(**{name: changed[name]})))


def test_marks_of_dspy_and_models_do_not_count_as_prompt() -> None:
    plain, marked = with_demos(demo()), with_demos(demo(augmented=True))
    marked.lm = MeteredLM("openai/none", api_key="hidden")
    marked.traces = ["one"]
    assert prompt_of(plain) == prompt_of(marked)


@pytest.mark.parametrize("make", [lambda: dspy.Predict(Everything), Two])
def test_a_program_s_own_model_stays_out_of_its_state_and_in_the_program(make: Any) -> None:
    own = MeteredLM("openai/none", api_key="hidden")
    program = make()
    program.set_lm(own)
    state = state_of(program)
    assert "hidden" not in json.dumps(state)
    assert "openai" not in json.dumps(state)
    fill(program, state)
    assert program.get_lm() is own
