"""A few words → how often a letter is in them. Right or wrong."""

from __future__ import annotations

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.gym import draw_puzzles, verify
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 300, 45
DATASET = "letter_counting"
CONFIG = {"min_words": 3, "max_words": 6}


class CountLetters(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: int = dspy.OutputField()


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(CountLetters)


def right_count(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """1 for the number."""
    return verify(DATASET, example, prediction)


def records(settings: Settings) -> list[Record]:
    """ROWS questions with their answers."""
    return draw_puzzles(DATASET, CONFIG, ROWS, settings, SEED, read=int)


project = Project(
    name="letters",
    summary="Count a letter in a few words",
    program=make_program,
    metric=right_count,
    dataset=DatasetSpec(
        source="letters",
        inputs=("question",),
        outputs=("answer",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
