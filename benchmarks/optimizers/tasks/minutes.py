"""A note with several numbers → how long the run took, in minutes. The score is how close the answer is."""

from __future__ import annotations

import math
import random

import dspy

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.drawing import DATA, PEOPLE, PLACES, draw_rows, seed_of
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 280, 42


class ReadMinutes(dspy.Signature):
    """How long did the run take?"""

    note: str = dspy.InputField()
    minutes: int = dspy.OutputField()


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(ReadMinutes)


def closeness(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """1 for the exact number, falling evenly over its logarithm to 0 at half and at twice the number."""
    expected, found = example.minutes, prediction.minutes
    if not isinstance(found, int | float) or found <= 0:
        return Score(value=0, feedback=f"Expected {expected} minutes, got {found!r}.")
    value = max(0.0, 1 - abs(math.log2(found / expected)))
    if value == 1:
        return Score(value=1, feedback="Right.")
    return Score(value=value, feedback=f"Expected {expected} minutes, got {found}: one hour is 60 minutes.")


TEMPLATES = (
    "Run {run} on the {data} took {time} {place}, with batch size {batch}.",
    "{owner} started run {run} ({batch} clients, {data}). {time} later it was through, {place}.",
    "Batch size {batch}, {data}, {place}: run {run} was finished after {time}.",
    "It took {time} to train on the {data}; {owner} used {batch} rows a step in run {run} {place}.",
    "{place}, run {run} went through the {data} in {time}. {owner} had set batch size {batch}.",
    "{owner} asks why run {run} needed {time} for the {data} when {batch} workers were free {place}.",
    "Log of run {run}: {data}, batch {batch}, wall time {time}. Signed {owner}, {place}.",
    "With {batch} rows a batch the {data} kept {owner}'s machine busy for {time} in run {run} {place}.",
)


def spell(minutes: int, draw: random.Random) -> str:
    """A duration as people write it."""
    hours, rest = divmod(minutes, 60)
    if not hours:
        return draw.choice((f"{rest} minutes", f"{rest} min"))
    if not rest:
        return draw.choice((f"{hours} hours", f"{hours} h")) if hours > 1 else "one hour"
    return draw.choice((f"{hours} h {rest} min", f"{hours} hours and {rest} minutes"))


def _make(draw: random.Random, number: int) -> Record:
    kind = number % 5
    if kind < 3:
        minutes = draw.randint(11, 59)
    else:
        minutes = 60 * draw.randint(1, 6) + (draw.choice((5, 10, 15, 20, 30, 40, 45, 50)) if kind == 4 else 0)
    text = draw.choice(TEMPLATES).format(
        time=spell(minutes, draw),
        run=draw.randint(100, 999),
        batch=draw.choice((2, 4, 8, 16, 24, 32, 48, 64)),
        owner=draw.choice(PEOPLE),
        data=draw.choice(DATA),
        place=draw.choice(PLACES),
    )
    return {"note": text[0].upper() + text[1:], "minutes": minutes}


def records(settings: Settings) -> list[Record]:
    """ROWS notes with the minutes; three in five say them in minutes, the others in hours, or hours and minutes."""
    return draw_rows(ROWS, seed_of(settings, SEED), _make, "note")


project = Project(
    name="minutes",
    summary="Read how long a run took out of a note with several numbers",
    program=make_program,
    metric=closeness,
    dataset=DatasetSpec(
        source="minutes",
        inputs=("note",),
        outputs=("minutes",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
