"""A note on a training run → a typed record. The score is the share of the record's fields that are right."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import dspy
from pydantic import BaseModel, Field

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.drawing import DATA, PEOPLE, PLACES, draw_rows, seed_of
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import Score
from dspy_toolkit.project import Project
from dspy_toolkit.settings import Settings

ROWS, SEED = 240, 41
METHODS = ("lora", "diffusion", "clip", "federated")


class Run(BaseModel):
    """What a note says about a training run."""

    owner: str = Field(min_length=1, max_length=20)
    method: Literal["lora", "diffusion", "clip", "federated"]
    steps: int = Field(ge=0, le=10**6)
    loss: float = Field(ge=0, le=100)


class ReadRun(dspy.Signature):
    """Fill in the record of the training run."""

    note: str = dspy.InputField()
    record: Run = dspy.OutputField()


def make_program() -> dspy.Module:
    """One prediction."""
    return dspy.Predict(ReadRun)


def share_of_fields(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """The share of the record's fields that are right. Text without case; the loss to a millionth."""
    expected, found = _plain(example.record), _plain(prediction.record)
    wrong = [
        f"{name}: expected {value!r}, got {found.get(name)!r}."
        for name, value in expected.items()
        if not _same(value, found.get(name))
    ]
    return Score(value=1 - len(wrong) / len(expected), feedback=" ".join(wrong) or "All fields are right.")


def _plain(record: Any) -> dict[str, Any]:
    return record.model_dump(mode="json") if isinstance(record, BaseModel) else dict(record or {})


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, str):
        return isinstance(found, str) and found.strip().casefold() == expected.casefold()
    return isinstance(found, int | float) and math.isclose(expected, found, abs_tol=1e-6)


TEMPLATES = (
    "{owner} stopped the {method} run on {data} after {steps} steps {place}. Validation loss was {loss} by then.",
    "Done {place}: {method} on {data}, loss {loss}, {steps} steps in all. Ask {owner} about the seeds.",
    "{place}, {owner} let {method} go on for {steps} steps with the {data}. It ended at a loss of {loss}.",
    "Loss {loss} at step {steps}, which is where {owner} cut off {method} training on the {data} ({place}).",
    "The {data} are finished. {method}, run by {owner} {place}, took {steps} steps down to {loss}.",
    "{owner} reports: {steps} steps of {method} {place}, data from the {data}, last loss {loss}.",
    "After {steps} steps the {method} model for the {data} stands at {loss}. {owner} started it {place}.",
    "Ticket from {owner}: please archive the {method} weights ({data}), {steps} steps, loss {loss}, made {place}.",
)
SPELLINGS = {
    "lora": ("LoRA", "a LoRA adapter", "low-rank adapter"),
    "diffusion": ("diffusion", "the diffusion", "image diffusion"),
    "clip": ("CLIP", "the CLIP", "contrastive CLIP"),
    "federated": ("federated", "the federated", "federated averaging"),
}


def _make(draw: random.Random, number: int) -> Record:
    method = METHODS[number % len(METHODS)]
    run = {
        "owner": draw.choice(PEOPLE),
        "method": method,
        "steps": draw.choice((draw.randint(3, 99) * 100, draw.randint(150, 9_999))),
        "loss": round(draw.uniform(0.2, 6.0), 2),
    }
    text = draw.choice(TEMPLATES).format(
        **run | {"method": draw.choice(SPELLINGS[method])}, data=draw.choice(DATA), place=draw.choice(PLACES)
    )
    return {"note": text[0].upper() + text[1:], "record": run}


def records(settings: Settings) -> list[Record]:
    """ROWS notes with their records."""
    return draw_rows(ROWS, seed_of(settings, SEED), _make, "note")


project = Project(
    name="record",
    summary="Read a typed record out of a note on a training run",
    program=make_program,
    metric=share_of_fields,
    dataset=DatasetSpec(
        source="record",
        inputs=("note",),
        outputs=("record",),
        fractions=Fractions(train=0.35, val=0.25, sealed=0.4),
    ),
)
