"""GEPA: a reflection model reads what went wrong and rewrites the instructions; a Pareto front of candidates evolves.

It runs in tranches of a few iterations, each of which starts from the leader of the pool, so that its instructions grow on
the best demonstrations that anybody found. A tranche compares its own candidates on the validation rows of the first rung;
these scores go into the pool.

GEPA's own checkpoint is not used. It resumes from any folder that it is given, whatever program or data the folder came
from, and with other random choices than a run that was never stopped. With the cache of replies a repeated run is the
same run. Merging is off by default: it makes small models worse (IFBench 38.6 → 28.2 on Qwen3-8B), and helps larger ones
(`[optimize.gepa] merge = true`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings

MINIBATCH = 3
"""Training rows that one reflection looks at; GEPA's default."""
ITERATIONS = 6
"""Of one tranche."""
ACCEPTED = 1 / 3
"""The share of iterations whose instruction is better on its minibatch, and is then scored on the rows of the first rung."""
FRUITLESS = 3
"""Tranches in a row without a new instruction, after which it has nothing more to say."""


def metric_calls(rows: int) -> int:
    """Metric calls of one tranche: what it starts from, then its iterations."""
    return round(rows + ITERATIONS * (2 * MINIBATCH + ACCEPTED * rows))


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """A tranche, divided among the candidates that it is expected to give."""
    calls, run = metric_calls(settings.rungs[0]), run_cost(profile)
    # An iteration may begin just below the limit, and score what it accepts.
    overshoot = (2 * MINIBATCH + settings.rungs[0]) * run
    tranche = calls * run + ITERATIONS * profile.predictors
    return Cost(tranche / max(ITERATIONS * ACCEPTED, 1), tranche + overshoot)


def candidates(shop: Workshop) -> Iterator[Made]:
    """Tranche after tranche, until several in a row gave nothing."""
    import dspy
    from dspy.teleprompt.gepa import InstructionProposer

    options = shop.settings.gepa
    fruitless = 0
    for tranche in count():
        shop.say("reflecting on training rows")
        optimizer = dspy.GEPA(
            metric=shop.feedback_metric,
            max_metric_calls=metric_calls(len(shop.first_rows)),
            reflection_lm=shop.reflection_lm,
            # GEPA would ask for JSON, which no grammar bounds: a small model rambles until max_tokens cuts it.
            instruction_proposer=InstructionProposer(adapter=shop.adapter),
            reflection_minibatch_size=min(MINIBATCH, len(shop.train)),
            component_selector=options.component_selector,
            # Without it, a program none of whose replies can be parsed gives GEPA nothing to reflect on.
            add_format_failure_as_feedback=True,
            num_threads=shop.problem.threads,
            use_merge=options.merge,
            seed=shop.seed * 1_000 + tranche,
        )
        _, scored = shop.attempt(
            optimizer.compile,
            shop.student(leading=True),
            trainset=balanced(shop.train, len(shop.train), seed=shop.seed * 1_000 + tranche),
            valset=shop.first_rows,
            metric=shop.feedback_metric,
        )
        # The first is what it started from.
        for number, made in enumerate(scored[1:], start=1):
            yield made._replace(label=f"reflected instruction {tranche + 1}.{number}")
        fruitless = 0 if len(scored) > 1 else fruitless + 1
        if shop.exhausted or fruitless == FRUITLESS:
            return
