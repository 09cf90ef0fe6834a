"""Fine-tuning: adapters (LoRA) of the task's own model, trained on the messages that the program itself will send.

The first candidate is the baseline in the plain format (in its own, where it has one), without demonstrations, on the adapter that
won a race of settings; the same with its labels scored, where its last output is a choice, comes next. Where the budget has room,
the winning settings are trained twice more with other first weights: one may be better, and an ensemble of them is steadier.

Trainings are in a process of their own, which goes on where a killed one was; one that was finished is not done again.
Remote models are not trained here: their providers' own fine-tuning makes another model, with a name and a price of its own, where an
adapter is a lever of the program that can be rolled back. It is DSPy's (`dspy.BootstrapFinetune`); name what comes of it as `lm.model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dspy_toolkit.finetuning.prediction import predict, seconds_a_token
from dspy_toolkit.finetuning.values import RowSet
from dspy_toolkit.lm.label_rules import plain_rule
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators import trainings
from dspy_toolkit.optimizers.generators.label_weights import choice_of, with_rule
from dspy_toolkit.optimizers.generators.training_rows import TRACED, labelled_rows, plain_program, row_set
from dspy_toolkit.optimizers.generators.trainings import PLANS, Plan
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import prompt_of
from dspy_toolkit.store import digest

if TYPE_CHECKING:
    import dspy


LEAST_ROWS = 16
"""Training rows; with fewer an adapter learns them by heart."""
AGAIN = 2
"""Trainings of the winning settings with other first weights, at most: one may be better, many are more of the same."""
LEAST_PASSED = 0.1
"""Share of a program's runs that must be right where it is to learn from its own."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """The time of the smallest training, in the calls that could have been made meanwhile, and the runs that traces take."""
    if profile.training_note:
        return Infeasible(reason=profile.training_note)
    if profile.train < LEAST_ROWS:
        return Infeasible(reason=f"{profile.train} training rows are too few for an adapter; {LEAST_ROWS} are needed")
    runs = 0.0 if profile.labelled else min(profile.train, TRACED) * run_cost(profile)
    step = trainings.calls(profile, PLANS[-1]) + runs
    return Cost(step / (2 if profile.labels else 1), step)


def candidates(shop: Workshop) -> Iterator[Made]:
    """The winner of a race, then its settings with other first weights, as long as the budget has room."""
    program = plain_program(shop.problem)
    data = row_set(shop, program)
    if data is None or len(data.rows) < LEAST_ROWS or (plan := trainings.best_plan(shop)) is None:
        return
    prompt = digest(prompt_of(program))
    for number in range(1, AGAIN + 2):
        if (found := adapted(shop, program, data, plan, "an adapter")) is not None:
            made, label = found
            yield Made(made, label)
            if shop.profile.labels:
                yield Made(scored(made), f"{label}, labels scored")
        if (winner := shop.winners.get(prompt)) is None:
            return  # nothing was learnt: other first weights do not change that
        plan = Plan((winner.model_copy(update={"seed": number}),))
        if trainings.calls(shop.profile, plan) > trainings.room(shop):
            return


def adapted(
    shop: Workshop, program: dspy.Module, data: RowSet, plan: Plan, what: str
) -> tuple[dspy.Module, str] | None:
    """(a copy of `program` on the adapter that a plan gives, how it was made); None where no step was better than none."""
    raced = trainings.run_plan(shop, plan, [data], what)
    if raced.trained.best_step == 0:
        return None
    settings, prompt = plan.arms[raced.winner], digest(prompt_of(program))
    shop.winners.setdefault(prompt, settings)
    shop.adapters.setdefault(prompt, raced.trained.adapter)
    among = f", the best of {len(plan.arms)} settings" if len(plan.arms) > 1 else ""
    again = f", first weights {settings.seed + 1}" if settings.seed else ""
    return on_adapter(program, raced.trained.adapter), f"fine-tuned at {trainings.name_of(settings)}{among}{again}"


def on_adapter(program: dspy.Module, adapter: str) -> dspy.Module:
    """A copy of which each step runs on one adapter."""
    made = program.deepcopy()
    for predictor in made.predictors():
        pull(predictor, adapter=adapter)
    return made


def scored(program: dspy.Module) -> dspy.Module:
    """A copy whose last output, a choice, is the label of the highest log-probability: nothing is fitted, since an adapter knows
    the training rows by heart.
    """
    name, texts = choice_of(program)
    return with_rule(program, name, plain_rule(list(texts)))


def training_facts(problem: Problem, labelled: bool, pass_rate: float, run_tokens: float) -> tuple[float, float, str]:
    """(seconds of one pass over what is trained on, its tokens, why there can be no training; empty where there can).

    Args:
        labelled: whether rows are trained on, and not traces.
        pass_rate: share of the baseline's runs that the metric accepts.
        run_tokens: prompt and reply tokens of one run.
    """
    if problem.trainable is None:
        return (
            0.0,
            0.0,
            (
                "its model is not one that is trained here, an MLX model without an adapter of its own; a provider's own "
                "fine-tuning makes another model: run dspy.BootstrapFinetune, and name what comes of it as lm.model"
            ),
        )
    own = problem.connection.teacher.model == problem.connection.lm.model
    if not labelled and own and pass_rate < LEAST_PASSED:
        return (
            0.0,
            0.0,
            (
                f"the rows hold no answers for all its steps, and {pass_rate:.0%} of its own runs are right, so there is next "
                "to nothing to learn from; a better model as [teacher] would give some"
            ),
        )
    if len(problem.train) < LEAST_ROWS:
        return 0.0, 0.0, ""
    weights, home, settings = problem.trainable.weights, problem.trainable.home, PLANS[-1].arms[0]
    if not labelled:
        accepted = min(len(problem.train), TRACED) * (pass_rate if own else max(pass_rate, 0.5))
        read = accepted * run_tokens
        return read * seconds_a_token(weights, settings, home), read, ""
    rows = labelled_rows(problem, plain_program(problem), problem.train)
    once, twice = (
        predict(weights, rows, settings.model_copy(update={"epochs": passes}), home) for passes in (1.0, 2.0)
    )
    return twice.seconds - once.seconds, float(once.tokens), ""
