"""A note on an experiment → a title in a house style, `method on data: finding`. The score is the F1 of its words."""

from __future__ import annotations

import random
import re
from collections import Counter

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.drawing import DATA, PEOPLE, PLACES, draw_rows, seed_of
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 240, 44
WORD = re.compile(r"[a-z0-9]+")


class WriteTitle(dspy.Signature):
    """Write a title for the note."""

    note: str = dspy.InputField()
    title: str = dspy.OutputField(max_length=60)


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(WriteTitle)


def words_f1(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """F1 of the words, without case and punctuation: 1 when both titles have the same words as often."""
    expected, found = (Counter(WORD.findall(str(text).lower())) for text in (example.title, prediction.title))
    shared = (expected & found).total()
    value = 2 * shared / (expected.total() + found.total())
    if value == 1:
        return Score(value=1, feedback="Right.")
    missing, extra = " ".join((expected - found).elements()), " ".join((found - expected).elements())
    parts = [
        f"Expected {example.title!r}.",
        f"Missing: {missing}." if missing else "",
        f"Too much: {extra}." if extra else "",
    ]
    return Score(value=value, feedback=" ".join(part for part in parts if part))


METHODS = ("LoRA", "DoRA", "pruning", "distillation", "quantization", "CLIP", "diffusion", "FedAvg", "Reptile", "MAML")
FINDINGS = {
    "overfits": ("validation loss rose from the second epoch on", "it knows its rows by heart and little else"),
    "too slow": (
        "every step takes eleven seconds, which is more than we can pay for",
        "nobody waits nine hours for it",
    ),
    "works well": ("everybody who saw the answers was pleased", "it beats last month's model on every count"),
    "no gain": ("the score is what it was before", "we could not tell it from the model that we began with"),
    "diverges": ("the loss went to NaN in the first epoch", "the gradients blew up each time"),
    "out of memory": ("the process was killed at the first large batch", "it wants 40 GB and we have 16"),
    "needs more rows": (
        "two hundred rows are not enough to learn from",
        "it starves: there is too little to learn from",
    ),
    "ready to ship": ("the release can go out on Monday", "the reviewers have signed it off"),
}
TEMPLATES = (
    "{owner} tried {method} on the {data} {place}, and {finding}.",
    "We gave {method} another chance, this time with the {data}: {finding}. {owner} ran it {place}.",
    "Notes from {owner}, {place}. Subject: the {data}. With {method}, {finding}.",
    "About the {data}: {owner} used {method} {place}. In short, {finding}.",
    "{place}, {owner} finished {method} for the {data}. What came of it: {finding}.",
    "Is {method} right for the {data}? {owner} looked into it {place}; {finding}.",
)


def _make(draw: random.Random, number: int) -> Record:
    finding = tuple(FINDINGS)[number % len(FINDINGS)]
    method, data = draw.choice(METHODS), draw.choice(DATA)
    text = draw.choice(TEMPLATES).format(
        method=method,
        data=data,
        finding=draw.choice(FINDINGS[finding]),
        owner=draw.choice(PEOPLE),
        place=draw.choice(PLACES),
    )
    return {"note": text[0].upper() + text[1:], "title": f"{method} on {data}: {finding}"}


def records(settings: Settings) -> list[Record]:
    """ROWS notes with their titles."""
    return draw_rows(ROWS, seed_of(settings, SEED), _make, "note")


project = Project(
    name="title",
    summary="Write a title in the house style for a note on an experiment",
    program=make_program,
    metric=words_f1,
    dataset=DatasetSpec(
        source="title",
        inputs=("note",),
        outputs=("title",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
