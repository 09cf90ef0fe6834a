"""A small family in a few sentences, and what one of them is to another → the word for it. Right or wrong."""

from __future__ import annotations

from typing import Literal, get_args

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.gym import draw_puzzles, verify
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 300, 47
DATASET = "family_relationships"
CONFIG = {"max_family_size": 6}
# Brothers and sisters are too rare in families of this size to be in every split. In-laws are left
# out because reasoning-gym 0.1.25 says of some what the second person is to the first.
Relation = Literal["mother", "father", "son", "daughter", "wife", "husband", "grandmother", "grandfather"]


class NameRelation(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: Relation = dspy.OutputField()


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(NameRelation)


def right_relation(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """1 for the word."""
    return verify(DATASET, example, prediction)


def records(settings: Settings) -> list[Record]:
    """ROWS questions with their answers."""
    return draw_puzzles(DATASET, CONFIG, ROWS, settings, SEED, answers=get_args(Relation))


project = Project(
    name="relation",
    summary="Say what one member of a family is to another",
    program=make_program,
    metric=right_relation,
    dataset=DatasetSpec(
        source="relation",
        inputs=("question",),
        outputs=("answer",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
