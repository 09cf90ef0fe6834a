"""GEPA: a reflection model reads what went wrong and rewrites the instructions; a Pareto front of candidates evolves.

Its state is kept in the compilation's own checkpoint folder, whose name holds everything that the result depends on:
GEPA resumes from any folder it is given, whatever program or data the folder came from. Merging is off: it makes small
models worse (IFBench 38.6 → 28.2 on Qwen3-8B).
"""

from __future__ import annotations

from dspy_toolkit.metrics import as_feedback
from dspy_toolkit.optimizers.budget import Budget, rows_for
from dspy_toolkit.optimizers.plan import Impossible, Plan
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.search import Search

SHARE = 1 / 10
"""Of the budget, for one evaluation on the validation rows."""
MINIBATCH = 3
"""Training rows that one reflection looks at; GEPA's default."""
LEAST_EVALUATIONS = 4
"""Of the validation rows, below which there is nothing to evolve."""
OVERSHOOT = 2 * MINIBATCH
"""GEPA looks at its limit between iterations only."""


def plan(profile: Profile, budget: Budget) -> Plan | Impossible:
    """Metric calls that, with the reflections they cause, fit the budget."""
    if profile.train == 0:
        return Impossible(reason="there are no training rows to reflect on")
    rows = rows_for(SHARE, budget, profile.calls_per_run, profile.val)
    evaluation = rows * profile.calls_per_run
    # An iteration looks at a minibatch twice and reflects once; an accepted one is evaluated too, which overshoots by one
    # evaluation at most.
    iteration = 2 * MINIBATCH * profile.calls_per_run + profile.predictors
    spendable = budget.lm_calls - evaluation - OVERSHOOT * profile.calls_per_run
    metric_calls = int(spendable * (2 * MINIBATCH) / iteration)
    if metric_calls < LEAST_EVALUATIONS * rows:
        return Impossible(
            reason=f"it needs {LEAST_EVALUATIONS} evaluations of {rows} rows to evolve anything, "
            f"and the {budget.name} budget of {budget.lm_calls} LM calls has room for {max(metric_calls, 0) / rows:.1f}"
        )
    settings = {"max_metric_calls": metric_calls, "val_rows": rows}
    return Plan(settings=settings, predicted_lm_calls=round(budget.lm_calls - evaluation))


def search(search: Search, settings: dict[str, int]) -> None:
    """Let GEPA evolve the instructions; its first candidate is the unchanged program."""
    import dspy

    search.say("reflecting on training rows")
    optimizer = dspy.GEPA(
        metric=as_feedback(search.metric),
        max_metric_calls=settings["max_metric_calls"],
        reflection_lm=search.reflection_lm,
        reflection_minibatch_size=min(MINIBATCH, len(search.train)),
        num_threads=search.threads,
        use_merge=False,
        log_dir=str(search.checkpoint / "gepa"),
        track_stats=True,
        seed=search.seed,
    )
    with search.running():
        candidate = optimizer.compile(
            search.program.deepcopy(),
            trainset=balanced(search.train, len(search.train), seed=search.seed),
            valset=search.val,
        )
    found = candidate.detailed_results
    for number, (program, mean) in enumerate(zip(found.candidates, found.val_aggregate_scores, strict=True)):
        search.note(program, f"candidate {number}" if number else "unchanged", mean)
