"""GEPA: a reflection model reads what went wrong and rewrites the instructions; a Pareto front of candidates evolves.

GEPA's own checkpoint is not used. It resumes from any folder that it is given, whatever program or data the folder came
from, and with other random choices than a run that was never stopped. With the cache of replies a repeated run is the
same run. Merging is off: it makes small models worse (IFBench 38.6 → 28.2 on Qwen3-8B).
"""

from __future__ import annotations

from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.search.search import Search
from dspy_toolkit.optimizers.settings import GepaSettings

SHARE = 1 / 10
"""Of the budget, for one evaluation on the validation rows."""
MINIBATCH = 3
"""Training rows that one reflection looks at; GEPA's default."""
LEAST_EVALUATIONS = 4
"""Of the validation rows, below which there is nothing to evolve."""
OVERSHOOT = 2 * MINIBATCH
"""GEPA checks its limit between iterations only."""


def plan(profile: Profile, budget: Budget, rows: int) -> Plan | Infeasible:
    """Metric calls that, with the reflections they cause, fit the budget; candidates are scored on `rows` validation rows."""
    cost = run_cost(profile)
    evaluation = rows * cost
    # An iteration scores a minibatch twice and reflects once; an accepted one is evaluated too, which overshoots by one
    # evaluation at most.
    iteration = 2 * MINIBATCH * cost + profile.predictors
    spendable = budget.lm_calls - evaluation - OVERSHOOT * cost
    metric_calls = int(spendable * (2 * MINIBATCH) / iteration)
    if metric_calls < LEAST_EVALUATIONS * rows:
        return Infeasible(
            reason=f"it needs {LEAST_EVALUATIONS} evaluations of {rows} rows to evolve anything, "
            f"and the {budget.name} budget of {budget.lm_calls} LM calls has room for {max(metric_calls, 0) / rows:.1f}"
        )
    settings = GepaSettings(max_metric_calls=metric_calls, val_rows=rows)
    # An iteration whose minibatch is perfect reflects on nothing: at worst all do, at best none.
    reflections = metric_calls / (2 * MINIBATCH) * profile.predictors / 2
    return Plan(settings=settings, predicted_lm_calls=round(metric_calls * cost + reflections))


def search(search: Search, settings: GepaSettings) -> None:
    """Let GEPA evolve the instructions; its first candidate is the baseline."""
    import dspy
    from dspy.teleprompt.gepa import InstructionProposer

    search.say("reflecting on training rows")
    optimizer = dspy.GEPA(
        metric=search.feedback_metric,
        max_metric_calls=settings.max_metric_calls,
        reflection_lm=search.reflection_lm,
        # GEPA would ask for JSON, which no grammar bounds: a small model rambles until max_tokens cuts it.
        instruction_proposer=InstructionProposer(adapter=search.connection.adapter),
        reflection_minibatch_size=min(MINIBATCH, len(search.train)),
        # Without it, a program none of whose replies can be parsed gives GEPA nothing to reflect on.
        add_format_failure_as_feedback=True,
        num_threads=search.threads,
        use_merge=False,
        seed=search.seed,
    )
    search.attempt(
        optimizer.compile,
        search.student(),
        trainset=balanced(search.train, len(search.train), seed=search.seed),
        valset=search.val,
        metric=search.feedback_metric,
        candidates="candidate",
    )
