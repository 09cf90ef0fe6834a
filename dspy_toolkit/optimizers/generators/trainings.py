"""Races of trainings as a search pays for them: what they would cost, which one the budget has room for, and running it.

A training's time is what the budget stands for: it is charged as the calls that could have been made in the time that it was predicted
to take, so that a run that goes on where a killed one was decides alike.

Which settings a task needs cannot be known before: a rate at which one learns to answer nearly all rows teaches another nothing.
So several start, and those that answer more of the validation rows right go on (`dspy_toolkit.finetuning.racing`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from dspy_toolkit.finetuning.process import race
from dspy_toolkit.finetuning.racing import planned
from dspy_toolkit.finetuning.values import Arm, Evaluation, Progress, Raced, RowSet, TrainSettings
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.choice import run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.profile import Profile

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """Trainings that start together."""

    arms: tuple[TrainSettings, ...]
    """Where two are level, the earlier goes on."""
    rungs: tuple[float, ...] = ()
    """Passes over the rows after which the better half goes on."""


START = TrainSettings(rate=1e-3, epochs=6, rank=16, layers=12, evaluations=1, patience=4)
"""The blocks below the last twelve are computed once for each row, so that a pass takes a third of the time of one through all."""


def _with(**changes: object) -> TrainSettings:
    return START.model_copy(update=changes)


PLANS = (
    Plan((START, _with(rate=4e-4), _with(rate=2e-3), _with(rank=8, layers=-1)), (1, 2)),
    Plan((START, _with(rate=4e-4), _with(rate=2e-3)), (1.5, 3)),
    Plan((START, _with(rate=4e-4)), (2,)),
    Plan((_with(epochs=4),)),
)
"""From the dearest to the cheapest; the dearest that the budget has room for is taken."""
START_SECONDS = 15.0
"""To start a process, load a small model and bring the adapter back."""
WHOLE = 3.0
"""How many times as long a pass takes when all blocks are adapted."""
SECONDS_PER_CALL = 0.3
"""Of a call, where the probe timed none."""
PATIENCE = 3.0
"""Trainings may take so many times what was predicted."""
SHARE = 2 / 3
"""Of a budget, that trainings may take where others would make candidates too."""
FREE = ("finetune", "formats", "labels")
"""Generators that leave trainings the whole budget but for scoring."""


def seconds(profile: Profile, plan: Plan) -> float:
    """What the trainings of a plan are predicted to take together."""
    return START_SECONDS + _passes(profile, plan) * profile.training_seconds


def tokens(profile: Profile, plan: Plan) -> int:
    """Tokens that they are predicted to read, repetitions included."""
    arms = [Arm(settings=settings) for settings in plan.arms]
    rows = max(profile.train, 1)
    steps = planned(arms, [rows] * len(arms), plan.rungs)
    read = sum(step * arm.settings.batch_rows for step, arm in zip(steps, arms, strict=True)) / rows
    return round(read * profile.training_tokens)


def _passes(profile: Profile, plan: Plan) -> float:
    """Passes over the rows, those through all blocks as what they cost."""
    arms, rows = [Arm(settings=settings) for settings in plan.arms], max(profile.train, 1)
    steps = planned(arms, [rows] * len(arms), plan.rungs)
    made = 0.0
    for step, settings in zip(steps, plan.arms, strict=True):
        dearer = 1.0 if settings.layers == START.layers else WHOLE
        made += dearer * step / max(-(-rows // settings.batch_rows), 1)
    return made


def calls(profile: Profile, plan: Plan) -> int:
    """LM calls that the trainings of a plan count as."""
    return round(seconds(profile, plan) / (profile.seconds_per_call or SECONDS_PER_CALL))


def room(shop: Workshop) -> float:
    """LM calls that trainings may take now: what is left when the baseline and two candidates are scored on all rows of the last
    rung; where others make candidates too, no more than a share of the whole.
    """
    scoring = 3 * shop.settings.rungs[-1] * run_cost(shop.profile)
    left = (shop.lm_calls if shop.pool is None else shop.pool.left) - scoring
    if any(name not in FREE for name in shop.settings.generators):
        return min(left, SHARE * shop.lm_calls)
    return left


def best_plan(shop: Workshop) -> Plan | None:
    """The dearest plan that the budget has room for; None where it has room for none."""
    most, left = room(shop), shop.lm_calls if shop.pool is None else shop.pool.left
    fitting = (plan for plan in PLANS if calls(shop.profile, plan) <= most)
    least = PLANS[-1] if calls(shop.profile, PLANS[-1]) <= left else None
    return next(fitting, least)


def run_plan(shop: Workshop, plan: Plan, data: Sequence[RowSet], what: str) -> Raced:
    """Train, and charge it.

    Args:
        data: one row set, which all arms read.
        what: for people.

    Raises:
        TrainingError: a row cannot be trained on, or the process failed.
        ModelError, LeaseTimeout, StoreError: as `dspy_toolkit.finetuning.race`.
    """
    tunable, profile = shop.problem.trainable, shop.profile
    assert tunable is not None, "the profile says so"
    seed = shop.seed % 2**30
    arms = [Arm(settings=arm.model_copy(update={"seed": seed + arm.seed})) for arm in plan.arms]

    def tell(now: Progress) -> None:
        left = "" if now.seconds_left is None else f", {now.seconds_left:.0f} s left"
        which = "" if len(arms) == 1 else f" (setting {now.arm + 1} of {len(arms)})"
        shop.say(f"training {what}: step {now.step} of {now.steps}{which}{left}")

    expected = seconds(profile, plan)
    shop.say(f"training {what}: about {expected:.0f} s")
    raced = race(
        tunable.weights, data, arms, plan.rungs, tunable.home, deadline_seconds=PATIENCE * expected, progress=tell,
        lease=tunable.lease, lease_seconds=tunable.lease_seconds,
    )  # fmt: skip
    shop.meter.add(Usage(lm_calls=calls(profile, plan)))
    log.info(
        "Training %s: %.0f s and %s tokens were predicted, %.0f s and %s tokens it took: %s",
        what, expected, tokens(profile, plan), raced.trained.seconds, raced.trained.tokens,
        "; ".join(_said(arm, result.stopped, result.val_losses) for arm, result in zip(plan.arms, raced.arms, strict=True)),
    )  # fmt: skip
    return raced


def name_of(settings: TrainSettings) -> str:
    """Settings for people."""
    where = "all blocks" if settings.layers == -1 else f"{settings.layers} blocks"
    return f"rate {settings.rate:g}, rank {settings.rank}, {where}"


def _said(settings: TrainSettings, stopped: str, evaluations: Sequence[Evaluation]) -> str:
    best = max((each.merit for each in evaluations), default=None)
    merit = "nothing was measured" if best is None else f"{best[0]:.0%} at its best"
    return f"{name_of(settings)}: {merit}, {stopped}"
