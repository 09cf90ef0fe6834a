"""Fine-tuning: adapters (LoRA) of the task's own model, trained on the rows that the program itself would see.

A candidate is the baseline in the plain format (in its own, where it has one), without demonstrations, on an adapter. What is trained is the very prompt that
will be sent, and the reply that the row's labels would be; the loss is that of the reply alone. The validation rows that the search
reads tell when to stop. Trainings are in a process of their own (`dspy_toolkit.finetuning`), which goes on where a killed one
was; a training that was finished is not done again.

For programs of one predictor whose outputs are all in the rows: a row holds no answer for the steps in between. Remote models are
not trained: their providers' own fine-tuning is DSPy's (`dspy.BootstrapFinetune`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dspy_toolkit.finetuning.prediction import predict
from dspy_toolkit.finetuning.process import train
from dspy_toolkit.finetuning.values import Progress, TrainingRow, TrainSettings
from dspy_toolkit.lm.adapter import format_adapter
from dspy_toolkit.lm.formats import format_of
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.protocol import Message
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators.formats import in_format
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import signature_of

if TYPE_CHECKING:
    import dspy
    import pandas as pd

log = logging.getLogger(__name__)

TRIED = (
    TrainSettings(rate=1e-3, epochs=4, rank=16, layers=12),
    TrainSettings(rate=5e-4, epochs=8, rank=16, layers=12),
    TrainSettings(rate=1e-3, epochs=4, rank=8, layers=-1),
)
"""Settings in the order in which they are tried. The blocks below the last twelve are computed once for each row, so that the first
two take a third of the time that the last one does; with a lower rate, some tasks learn nothing in four passes."""
LEAST_ROWS = 16
"""Training rows; with fewer an adapter learns them by heart."""
VAL_ROWS = 64
"""Validation rows that say when to stop, at most: they are read twice in each pass."""
START_SECONDS = 15.0
"""To start a process, load a small model and bring the adapter back."""
WHOLE = 3.0
"""How many times as long a pass takes when all blocks are adapted."""
SECONDS_PER_CALL = 0.3
"""Of a call, where the probe timed none."""
PATIENCE = 3.0
"""A training may take so many times what was predicted."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """A training's time, in the calls that could have been made meanwhile."""
    if profile.training_note:
        return Infeasible(reason=profile.training_note)
    if profile.train < LEAST_ROWS:
        return Infeasible(reason=f"{profile.train} training rows are too few for an adapter; {LEAST_ROWS} are needed")
    calls = [training_calls(profile, tried) for tried in TRIED]
    return Cost(sum(calls) / len(calls), calls[0])  # a dearer one that comes later looks for room itself


def training_seconds(profile: Profile, settings: TrainSettings) -> float:
    """What a training is predicted to take."""
    dearer = 1.0 if settings.layers == TRIED[0].layers else WHOLE
    return START_SECONDS + dearer * settings.epochs * profile.training_seconds


def training_calls(profile: Profile, settings: TrainSettings) -> int:
    """LM calls that a training counts as."""
    seconds = training_seconds(profile, settings)
    return round(seconds / (profile.seconds_per_call or SECONDS_PER_CALL))


def candidates(shop: Workshop) -> Iterator[Made]:
    """An adapter for each of the settings, as long as the budget has room for it."""
    problem, tunable = shop.problem, shop.problem.trainable
    assert tunable is not None, "the profile says so"
    program = plain_program(problem)
    rows = training_rows(problem, program, problem.train)
    val_rows = training_rows(problem, program, problem.val_sample(min(shop.settings.val_rows, VAL_ROWS)))
    for tried in TRIED:
        calls = training_calls(shop.profile, tried)
        if shop.pool is not None and calls > shop.pool.left:
            continue
        settings = tried.model_copy(update={"seed": shop.seed % 2**31})

        def tell(now: Progress) -> None:
            left = "" if now.seconds_left is None else f", {now.seconds_left:.0f} s left"
            shop.say(f"training an adapter: step {now.step} of {now.steps}{left}")

        shop.say("training an adapter")
        limit = PATIENCE * training_seconds(shop.profile, settings)
        trained = train(
            tunable.weights, rows, val_rows, settings, tunable.home, deadline_seconds=limit, progress=tell,
            lease=tunable.lease, lease_seconds=tunable.lease_seconds,
        )  # fmt: skip
        # Time is what the budget stands for: a training counts as what it was predicted to take, so that a run that goes on
        # where a killed one was decides alike.
        shop.meter.add(Usage(lm_calls=calls))
        log.info("Adapter %s: %s", trained.adapter[:8], trained.model_dump(exclude={"val_losses"}))
        if trained.best_step == 0:
            continue  # no step was better than none
        made = program.deepcopy()
        for predictor in made.predictors():
            pull(predictor, adapter=trained.adapter)
        yield Made(made, f"fine-tuned at rate {tried.rate:g}, rank {tried.rank}, {tried.epochs:g} passes")


def plain_program(problem: Problem) -> dspy.Module:
    """The baseline as it is trained: in the format with the fewest words, and without demonstrations, which training replaces."""
    program = problem.program.deepcopy()
    if all(format_of(predictor) is None for predictor in program.predictors()):
        program = in_format(program, problem.program, "plain", local=True)
    for predictor in program.predictors():
        predictor.demos = []
        pull(predictor, neighbors=None)
    return program


def training_rows(problem: Problem, program: dspy.Module, rows: pd.DataFrame) -> list[TrainingRow]:
    """Rows as the model will see them, with the replies that their labels would be."""
    (predictor,) = program.predictors()
    signature, written = signature_of(predictor), format_adapter(predictor)
    made = []
    for case in problem.cases(rows):
        messages = written.format(signature, predictor.demos, dict(case.inputs()))
        reply = written.format_assistant_message_content(signature, dict(case.labels())).rstrip("\n")
        made.append(TrainingRow(prompt=tuple(Message(**message) for message in messages), reply=reply))
    return made


def training_facts(problem: Problem, labelled: bool) -> tuple[float, str]:
    """(seconds of one pass over the training rows, why there can be no training; empty where there can)."""
    if problem.trainable is None:
        return 0.0, "its model is not one that is trained here: an MLX model without an adapter of its own"
    if not labelled:
        return 0.0, "the rows hold no answers for all outputs of a program of one step"
    if len(problem.train) < LEAST_ROWS:
        return 0.0, ""
    program = plain_program(problem)
    rows = training_rows(problem, program, problem.train)
    once, twice = (
        predict(
            problem.trainable.weights, rows, TRIED[0].model_copy(update={"epochs": passes}), problem.trainable.home
        ).seconds
        for passes in (1.0, 2.0)
    )
    return twice - once, ""
