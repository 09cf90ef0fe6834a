"""MIPROv2: instructions from a proposer and demonstrations from bootstrapping, combined by Bayesian search.

Settings are computed from the budget instead of DSPy's `auto`, whose light form costs about 550 program runs on 60
validation rows. Every trial is evaluated on all the validation rows given (`minibatch=False`), so that the best trial's
score is comparable.
"""

from __future__ import annotations

from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.search.search import Search
from dspy_toolkit.optimizers.settings import MiproSettings

SHARE = 1 / 10
"""Of the budget, for one trial."""
DEMO_SETS = 4
"""Sets of demonstrations: one is empty, one labelled, the rest bootstrapped."""
SLICE = 12
"""Training rows that demonstrations are bootstrapped from, and that the proposer looks at."""
DATA_CALLS = 6
"""Calls of the proposer on SLICE rows, at most: observations, and their summary."""
LEAST_TRIALS = 3
MOST_TRIALS = 60


def plan(profile: Profile, budget: Budget, rows: int) -> Plan | Infeasible:
    """As many trials as fit the budget after proposing and bootstrapping, each scored on `rows` validation rows."""
    if profile.train < 2:
        return Infeasible(reason=f"it needs at least 2 training rows, and there are {profile.train}")
    cost = run_cost(profile)
    # The unshuffled set and DEMO_SETS - 3 shuffled ones are bootstrapped, each from the slice at worst.
    slice_ = min(SLICE, profile.train)
    bootstrapping = (DEMO_SETS - 2) * slice_ * cost
    # The proposer: a few calls on the data, then one for each instruction of each predictor.
    fixed = bootstrapping + DATA_CALLS + DEMO_SETS * profile.predictors
    evaluation = rows * cost
    # The baseline is evaluated first; it is not one of the trials.
    trials = min(MOST_TRIALS, int((budget.lm_calls - fixed) // evaluation) - 1)
    if trials < LEAST_TRIALS:
        return Infeasible(
            reason=f"{LEAST_TRIALS} trials cost about {fixed + (LEAST_TRIALS + 1) * evaluation:.0f} LM calls, "
            f"and the {budget.name} budget has {budget.lm_calls}"
        )
    settings = MiproSettings(trials=trials, demo_sets=DEMO_SETS, slice=slice_, val_rows=rows)
    demos = min(8, slice_) * (DEMO_SETS - 1) / DEMO_SETS
    return Plan(settings=settings, predicted_lm_calls=round(fixed + (trials + 1) * evaluation), demos=demos)


def search(search: Search, settings: MiproSettings) -> None:
    """Let MIPROv2 search; its first evaluation is that of the baseline."""
    # DSPy imports it after proposing and bootstrapping, when it is too late to find it missing.
    import optuna  # noqa: F401
    from dspy.teleprompt import MIPROv2

    rows = balanced(search.train, settings.slice, seed=search.seed)
    search.say("proposing instructions and demonstrations")
    optimizer = MIPROv2(
        metric=search.float_metric,
        metric_threshold=PASS,
        prompt_model=search.reflection_lm,
        task_model=search.lm,
        auto=None,
        num_candidates=settings.demo_sets,
        num_threads=search.threads,
        max_bootstrapped_demos=min(4, len(rows)),
        max_labeled_demos=min(8, len(rows)),
        # A run that fails scores 0; ten of them must not end the search.
        max_errors=10**6,
        seed=search.seed,
    )
    search.attempt(
        optimizer.compile,
        search.student(),
        teacher=search.teacher(),
        trainset=rows,
        valset=search.val,
        num_trials=settings.trials,
        minibatch=False,
        # The program's source and its description are long prompts, which small models cannot use.
        program_aware_proposer=False,
        seed=search.seed,
        metric=search.float_metric,
        candidates="trial",
    )
