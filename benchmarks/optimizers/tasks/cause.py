"""A ticket about a training run → the symptom in a few words → its cause. Two steps, judged by the cause alone."""

from __future__ import annotations

import random
from typing import Literal

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.drawing import DATA, PEOPLE, PLACES, draw_rows, seed_of
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 260, 43


class FindSymptom(dspy.Signature):
    """Say in a few words what went wrong."""

    ticket: str = dspy.InputField()
    symptom: str = dspy.OutputField(max_length=60)


class NameCause(dspy.Signature):
    """Name the cause.

    - memory: the machine has too little of it
    - divergence: the loss explodes
    - overfitting: the model learns its rows by heart
    - data: the rows themselves are bad
    """

    symptom: str = dspy.InputField()
    cause: Literal["memory", "divergence", "overfitting", "data"] = dspy.OutputField()


class TwoSteps(dspy.Module):
    """Find the symptom, then name its cause."""

    def __init__(self) -> None:
        super().__init__()
        self.find = dspy.Predict(FindSymptom)
        self.name = dspy.Predict(NameCause)

    def forward(self, ticket: str) -> dspy.Prediction:
        """Both steps; the answer has both fields."""
        symptom = self.find(ticket=ticket).symptom
        return dspy.Prediction(symptom=symptom, cause=self.name(symptom=symptom).cause)


SYMPTOMS = {
    "memory": (
        "the process was killed when memory ran out",
        "it ended with an out-of-memory error",
        "the Mac swapped until nothing moved any more",
        "memory use climbed until the system stopped it",
        "it could not allocate 12 GB for the activations",
        "a batch of 64 does not fit into memory",
        "the machine has 8 GB of memory and the model wants 20",
        "the kernel killed it for using all the RAM",
    ),
    "divergence": (
        "the loss became NaN",
        "the loss shot up to infinity",
        "the loss exploded and never came back",
        "the gradients blew up and the loss went to NaN",
        "the loss jumped from 2 to 900 within ten steps",
        "the weights turned into NaN after the warmup",
        "with the higher learning rate the loss explodes",
        "the loss doubles every few steps",
    ),
    "overfitting": (
        "training loss is near zero while validation loss rises",
        "it repeats its training rows word for word",
        "it is perfect on the training rows and poor on new ones",
        "validation got worse from the second epoch on while training went on falling",
        "it knows the training set by heart and fails on fresh rows",
        "the gap between training and validation loss grows every epoch",
        "after ten epochs it only recites what it was trained on",
        "new inputs get answers copied from the training set",
    ),
    "data": (
        "half of the labels are wrong",
        "a third of the rows are empty",
        "the same row stands in the file 400 times",
        "the labels of two columns were swapped",
        "the file has broken characters in most rows",
        "the captions belong to other pictures",
        "many rows were cut off in the middle",
        "the export dropped the answers from the rows",
    ),
}
TEMPLATES = (
    "{owner} trained on the {data} {place}: {symptom}. What should we change?",
    "Run {run}, {data}. It began well {place}, but {symptom}. {owner} would like to know why.",
    "We have a problem with the {data}. {place}, {symptom}. Please look at run {run}. {owner}",
    "Ticket {run} by {owner}: {symptom}. Same {place} as with the {data} last month.",
    "Can somebody help {owner}? Since Tuesday {symptom} ({data}, run {run}, {place}).",
    "{owner} says that {symptom}. This was {place} with the {data}, settings as in run {run}.",
)


def _make(draw: random.Random, number: int) -> Record:
    cause = tuple(SYMPTOMS)[number % len(SYMPTOMS)]
    text = draw.choice(TEMPLATES).format(
        symptom=draw.choice(SYMPTOMS[cause]),
        owner=draw.choice(PEOPLE),
        data=draw.choice(DATA),
        place=draw.choice(PLACES),
        run=draw.randint(100, 999),
    )
    return {"ticket": text[0].upper() + text[1:], "cause": cause}


def records(settings: Settings) -> list[Record]:
    """ROWS tickets with their causes, as many of each."""
    return draw_rows(ROWS, seed_of(settings, SEED), _make, "ticket")


project = Project(
    name="cause",
    summary="Find the symptom in a ticket, then name its cause",
    program=TwoSteps,
    metric=exact_match,
    dataset=DatasetSpec(
        source="cause",
        inputs=("ticket",),
        outputs=("cause",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
