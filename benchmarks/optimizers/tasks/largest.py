"""A few numbers in several notations → the largest or smallest of them. Right or wrong."""

from __future__ import annotations

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.gym import draw_puzzles, verify
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 300, 46
DATASET = "number_format"
CONFIG = {"min_num_candidates": 3, "max_num_candidates": 3, "max_n": 100_000}


class PickNumber(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: float = dspy.OutputField()


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(PickNumber)


def right_number(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """1 for the number, to a hundredth."""
    return verify(DATASET, example, prediction, {"solution": example.answer})


def records(settings: Settings) -> list[Record]:
    """ROWS questions with their answers."""
    return draw_puzzles(DATASET, CONFIG, ROWS, settings, SEED, read=float)


project = Project(
    name="largest",
    summary="Pick the largest or smallest of a few numbers",
    program=make_program,
    metric=right_number,
    dataset=DatasetSpec(
        source="largest",
        inputs=("question",),
        outputs=("answer",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
