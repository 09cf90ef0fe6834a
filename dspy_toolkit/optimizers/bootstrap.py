"""BootstrapFewShot, several times: different demonstrations from the training rows, the best set by validation.

Each candidate runs DSPy's BootstrapFewShot on a small slice of the training rows, balanced over the answers and just as
large as the prompt has room for demonstrations: those that the program answers rightly come with their whole trace
(augmented demonstrations), the others with their labels. The slice bounds what a candidate costs, whatever the pass rate.
"""

from __future__ import annotations

from dspy_toolkit.metrics import as_float
from dspy_toolkit.optimizers.budget import Budget, rows_for
from dspy_toolkit.optimizers.plan import Impossible, Plan
from dspy_toolkit.optimizers.profile import PASS, Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.search import Search

SHARE = 1 / 6
"""Of the budget, for one evaluation: four or five candidates beside the unchanged program."""
DEMOS = (6, 8, 4, 12)
"""Sizes of the demonstration sets, in turn."""
BOOTSTRAPPED = 4
"""Demonstrations with a trace, at most; DSPy's default."""
MOST_CANDIDATES = 24


def plan(profile: Profile, budget: Budget) -> Plan | Impossible:
    """As many candidates as the budget carries."""
    if profile.train == 0:
        return Impossible(reason="there are no training rows to take demonstrations from")
    rows = rows_for(SHARE, budget, profile.calls_per_run, profile.val)
    calls, candidates = rows * profile.calls_per_run, 0
    while candidates < MOST_CANDIDATES:
        more = (rows + _size(candidates, profile.train)) * profile.calls_per_run
        if calls + more > budget.lm_calls:
            break
        calls, candidates = calls + more, candidates + 1
    if not candidates:
        return Impossible(
            reason=f"one candidate costs about {calls + rows * profile.calls_per_run:.0f} LM calls, "
            f"and the {budget.name} budget has {budget.lm_calls}"
        )
    settings = {"candidates": candidates, "max_bootstrapped_demos": BOOTSTRAPPED, "val_rows": rows}
    return Plan(settings=settings, predicted_lm_calls=round(calls))


def _size(candidate: int, train: int) -> int:
    return min(DEMOS[candidate % len(DEMOS)], train)


def search(search: Search, settings: dict[str, int]) -> None:
    """Score the unchanged program, then candidate after candidate until they, or the budget, are through."""
    from dspy.teleprompt import BootstrapFewShot

    search.score(search.program.deepcopy(), "unchanged")
    for number in range(settings["candidates"]):
        if search.exhausted:
            return
        size = _size(number, len(search.train))
        slice_ = balanced(search.train, size, seed=search.seed * 1_000 + number)
        search.say(f"candidate {number + 1}: demonstrations from {size} rows")
        optimizer = BootstrapFewShot(
            metric=as_float(search.metric),
            # Without a threshold any graded score above 0 would do for a demonstration.
            metric_threshold=PASS,
            max_bootstrapped_demos=min(settings["max_bootstrapped_demos"], size),
            max_labeled_demos=size,
            # One run that fails is one demonstration less; the budget's end shows in the next score.
            max_errors=len(slice_) + 1,
        )
        # The best so far teaches. Marked as compiled, or DSPy would put other labelled rows before each question: a
        # prompt that no two questions share.
        teacher = (search.best or search.program).deepcopy()
        teacher._compiled = True
        with search.running():
            candidate = optimizer.compile(search.program.deepcopy(), teacher=teacher, trainset=slice_)
        search.score(candidate, f"candidate {number + 1} ({size} demonstrations)")
