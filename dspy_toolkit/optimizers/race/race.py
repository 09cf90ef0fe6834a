"""A race: several optimizers (arms) within one budget. Those shown to be worse are dropped, the rest share what is left
of it.

Every arm searches on the same few validation rows. Its best program is then scored on *holdout rows*: further
validation rows, the same for all arms, which no arm chose by, so that the arm with the most candidates does not win by
luck. The baseline is scored on them too, as the arm `baseline`.

After each round an arm is dropped when the paired interval of its difference from the leader lies below zero. The level
is such that the best arm is dropped with a probability of at most ERROR, over all rounds and arms together. An arm is
also dropped when the rest of the budget gives it no further step. The next round doubles the holdout rows, and divides
the next share of the budget among the arms that can use it. In the end the arm with the highest mean wins; of equal
ones the cheaper.

Budgets are charged in logical calls. What an arm did in an earlier round is charged once: its next run starts from the
beginning, with the cache of replies in place of the model (see `arm_run`).

Not covered: who runs the arms. That is an argument, so that they may run one after another here, or each on another
machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.budget import Budget
from dspy_toolkit.optimizers.choice import Choice, Infeasible, Plan, run_cost
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.race.arm_run import BASELINE, ArmRun, ArmRunResult
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS, least
from dspy_toolkit.optimizers.search.search import Trial
from dspy_toolkit.optimizers.settings import NoSearch, OptimizerSettings, RaceSettings
from dspy_toolkit.store import Frozen, Ref

Runner = Callable[[Sequence[ArmRun]], Sequence[ArmRunResult]]
"""Runs the arms of one round, in any order or all at once; the results come in the order of the arguments."""

ERROR = 0.1
"""The probability that the best arm is dropped for being worse."""
FIRST_SHARE = 0.5
"""Of the budget, that the first round may take at most."""
LEAST_ROWS, MOST_ROWS = 10, 40
"""Validation rows that arms choose by; the first round has as many holdout rows."""
MOST_ROUNDS = 3
"""More of them leave too little for each to search with."""
HOLDOUT_SHARE = 0.1
"""Of the budget, that scoring one program on the holdout rows of the last round may cost."""
ORDER = (BASELINE, *reversed(OPTIMIZERS))
"""From the cheapest program to the dearest: the earlier wins where two arms are equal."""


Verdict = Literal["won", "dropped", "failed"]


class ArmResult(Frozen):
    """How one arm of a race fared."""

    name: str
    verdict: Verdict
    reason: str
    """One sentence, with the numbers."""
    mean: float = 0.0
    """Mean score of its best program on `holdout_rows` validation rows that no arm chose by."""
    holdout_rows: int = 0
    rounds: int = 0
    """Rounds that it took part in."""
    lm_calls: int = 0
    """Logical."""


class RaceResult(Frozen):
    """What a race came to."""

    winner: str
    program: Ref
    """The winner's state."""
    mean: float
    """Mean score of the winner, on the holdout rows of the last round."""
    baseline: float
    """Mean score of the baseline, on the same rows."""
    arms: tuple[ArmResult, ...]
    """The winner first, then by rounds and mean."""
    changed: bool
    """Whether the winner's prompt differs from that of the baseline."""
    trials: tuple[Trial, ...]
    """Of all arms."""
    usage: Usage
    """Of all arms. Its logical calls are those that were charged: what an arm repeats of an earlier round is not."""


@dataclass
class _Arm:
    """What is known of one arm so far."""

    name: str
    least: int
    """Calls that its first candidate takes, `start` included."""
    start: int
    """Calls for scoring the program that it starts from; 0 where that is the baseline."""
    allowance: int = 0
    """Calls that its search may spend, counted from its beginning."""
    settings: OptimizerSettings = field(default_factory=NoSearch)
    result: ArmRunResult | None = None
    """Of the latest round that gave a program."""
    holdout_calls: int = 0
    """Logical, each holdout row charged once for each program."""
    usage: Usage = field(default_factory=Usage)
    """Of all its rounds, repetitions included."""
    rounds: int = 0
    verdict: Verdict | None = None
    """None while it runs."""
    reason: str = ""

    def plan(self, profile: Profile, calls: int, rows: int) -> Plan | Infeasible:
        """What it would do with `calls` from its beginning."""
        return OPTIMIZERS[self.name].plan(profile, Budget(name="remaining", lm_calls=calls - self.start), rows)

    def end(self, verdict: Verdict, reason: str) -> None:
        """Take it out of the race. `reason` is one sentence, with the numbers."""
        self.verdict, self.reason = verdict, reason

    def add(self, result: ArmRunResult) -> None:
        """Take in what it found in a round; an error ends it."""
        self.rounds += 1
        self.usage += result.usage
        if result.error or result.program is None:
            self.end("failed", result.error)
            return
        # The holdout rows of a round begin with those of the one before: the same program answers them from the cache.
        before = self.result
        known = len(before.values) if before is not None and before.prompt == result.prompt else 0
        self.holdout_calls += round(result.holdout_calls * (1 - known / len(result.values)))
        self.result = result

    @property
    def charged(self) -> int:
        return self.holdout_calls + (self.result.search_calls if self.result else 0)

    @property
    def mean(self) -> float:
        return sum(self.result.values) / len(self.result.values) if self.result else 0.0

    @property
    def holdout_rows(self) -> int:
        return len(self.result.values) if self.result else 0

    @property
    def title(self) -> str:
        return "the baseline" if self.name == BASELINE else self.name


def plan_race(
    names: Sequence[str], profile: Profile, budget: Budget, *, started: bool = False
) -> tuple[RaceSettings, dict[str, str]]:
    """(settings of a race between the arms that the budget has room for, reason against each of the others).

    The first of `names` that can run takes part; then the cheapest ones, as long as the first candidates of all take no
    more than FIRST_SHARE of the budget.

    Args:
        names: in the order of preference. The first is what would run alone; without it a race would hardly be one.
        started: whether the arms start from another program, which each scores beside the baseline.
    """
    cost = run_cost(profile)
    share = int(budget.lm_calls / (50 * cost))
    rows = max(1, min(max(share, LEAST_ROWS), MOST_ROWS, profile.val // 2))
    most = min(profile.val - rows, max(int(HOLDOUT_SHARE * budget.lm_calls / cost), rows))
    holdout = min(rows, most)
    start_calls = math.ceil(2 * rows * cost) if started else 0
    needed = {
        name: None if (calls := least(name, profile, rows, budget.lm_calls)) is None else calls + start_calls
        for name in names
    }
    arms, left_out = [], {}
    room = FIRST_SHARE * budget.lm_calls - holdout * cost
    favourite = next((name for name in names if needed[name] is not None), None)

    def preference(name: str) -> tuple[bool, bool, int, int]:
        return name != favourite, needed[name] is None, needed[name] or 0, ORDER.index(name)

    for name in sorted(names, key=preference):
        calls = needed[name]
        if holdout < 1 or calls is None:
            planned = OPTIMIZERS[name].plan(profile, budget, rows)
            left_out[name] = (
                planned.reason if isinstance(planned, Infeasible) else "there are no validation rows to race on"
            )
        elif calls + holdout * cost > room:
            left_out[name] = (
                f"its first candidate costs {calls} LM calls, and with the others it is more than half of the "
                f"{budget.name} budget of {budget.lm_calls}"
            )
        else:
            arms.append(name)
            room -= calls + holdout * cost
    last = _holdout_rows(holdout, most, _rounds(len(arms)))
    settings = RaceSettings(
        val_rows=rows + last,
        arms=tuple(arms),
        rows=rows,
        holdout_rows=holdout,
        most_holdout_rows=most,
        start_calls=start_calls,
    )
    return settings, left_out


def race(choice: Choice, profile: Profile, run: Runner, say: Callable[[int, str], None] | None = None) -> RaceResult:
    """Run a race.

    Args:
        choice: of `select(profile, "race", budget)`.
        profile: the one that `choice` was made from.
        run: runs the arms of a round.
        say: told the logical calls charged so far, and what is going on.

    Raises:
        OptimizerError: the baseline cannot be scored.
    """
    settings = choice.settings
    if not isinstance(settings, RaceSettings):
        raise OptimizerError(f"{choice.optimizer} was chosen, not a race. Choose with --optimizer race.")
    rows, most, start = settings.rows, settings.most_holdout_rows, settings.start_calls
    arms = [_Arm(name, (least(name, profile, rows, choice.lm_calls) or 0) + start, start) for name in settings.arms]
    baseline = _Arm(BASELINE, 0, 0)
    rounds = _rounds(len(arms))
    holdout = settings.holdout_rows
    for number in range(1, rounds + 1):
        spent = sum(arm.charged for arm in (*arms, baseline))
        left = choice.lm_calls - spent
        running = _affordable([arm for arm in arms if arm.verdict is None], profile, holdout, left, first=number == 1)
        _divide(running, profile, rows, holdout, left, rounds - number + 1, first=number == 1)
        arm_runs = [
            ArmRun(arm=arm.name, settings=arm.settings, lm_calls=arm.allowance, rows=rows, holdout_rows=holdout)
            for arm in (baseline, *running)
        ]
        if say is not None:
            say(spent, f"round {number} of {rounds}: {', '.join(arm.name for arm in running)}")
        for arm, result in zip((baseline, *running), run(arm_runs), strict=True):
            arm.add(result)
        if baseline.result is None:
            raise OptimizerError(f"The baseline cannot be scored: {baseline.reason}")
        _drop_worse([baseline, *(arm for arm in running if arm.verdict is None)], len(arms), rounds, number)
        if not any(arm.verdict is None for arm in arms):
            break
        holdout = _holdout_rows(holdout, most, 2)
    return _finish(baseline, arms)


def _rounds(arms: int) -> int:
    return min(1 + arms, MOST_ROUNDS)


def _holdout_rows(first: int, most: int, rounds: int) -> int:
    """Those of the last of `rounds`: they double from round to round."""
    return min(first * 2 ** (rounds - 1), most)


def _scoring(profile: Profile, holdout: int) -> int:
    """Calls for scoring one program on the holdout rows, at most: rows that the same program answered before cost nothing."""
    return math.ceil(holdout * run_cost(profile))


def _affordable(running: list[_Arm], profile: Profile, holdout: int, left: int, *, first: bool) -> list[_Arm]:
    """The arms, the best first, for which the budget has room in this round; the last ones are dropped, down to one
    arm.

    Room means: scoring every arm and the baseline, and in the first round each arm's first candidate.
    """
    scoring = _scoring(profile, holdout)
    running = sorted(running, key=lambda arm: (-arm.mean, ORDER.index(arm.name)))
    while len(running) > 1 and (len(running) + 1) * scoring + (sum(a.least for a in running) if first else 0) > left:
        last = running.pop()
        last.end(
            "dropped",
            f"It was last after {last.rounds} rounds, and the budget has no room for another round of it."
            if last.rounds
            else "The budget has no room for its first round.",
        )
    return running


def _divide(
    running: list[_Arm], profile: Profile, rows: int, holdout: int, left: int, rounds_left: int, *, first: bool
) -> None:
    """Raise the allowances by this round's part of what is left of the budget.

    The part is divided equally. An arm that can use less than its share leaves the rest of it to the others: hence the
    arms take their shares in the order of what they can use, the most modest first.
    """
    pool = max(left - (len(running) + 1) * _scoring(profile, holdout), 0) // rounds_left
    if first:
        pool = max(pool, sum(arm.least for arm in running))
    useful = {arm.name: _useful(arm, profile, rows, pool) for arm in running}
    for place, arm in enumerate(sorted(running, key=lambda arm: useful[arm.name])):
        extra = min(pool // (len(running) - place), useful[arm.name])
        if first:
            extra = max(extra, arm.least)
        pool = max(pool - extra, 0)
        planned = arm.plan(profile, arm.allowance + extra, rows)
        # Calls that would not buy one more step stay in the budget, for the next round.
        if not isinstance(planned, Infeasible) and planned.settings != arm.settings:
            arm.allowance, arm.settings = arm.allowance + extra, planned.settings


def _useful(arm: _Arm, profile: Profile, rows: int, pool: int) -> int:
    """Calls, up to `pool`, that the arm could make something of."""
    planned = arm.plan(profile, arm.allowance + pool, rows)
    if isinstance(planned, Infeasible) or planned.settings == arm.settings:
        return 0
    # A little more than predicted: predictions are means.
    return max(min(pool, math.ceil(1.15 * planned.predicted_lm_calls) + arm.start - arm.allowance), 0)


def _drop_worse(running: list[_Arm], arms: int, rounds: int, number: int) -> None:
    """Drop the arms that the paired test shows to be worse than the leader. The baseline is never dropped."""
    leader = min(running, key=lambda arm: (-arm.mean, ORDER.index(arm.name)))
    # Bonferroni: the best arm is tested at most once a round, and the leader may be any of the arms.
    alpha = ERROR / (max(arms, 1) * rounds)
    for arm in running:
        if arm is leader or arm.name == BASELINE:
            continue
        high = upper_end(arm.result, leader.result, alpha)
        if high < 0:
            arm.end(
                "dropped",
                f"Worse than {leader.title} after round {number}: {100 * (arm.mean - leader.mean):+.1f} points on "
                f"{arm.holdout_rows} rows, at most {100 * high:+.1f}.",
            )


def upper_end(arm: ArmRunResult | None, leader: ArmRunResult | None, alpha: float) -> float:
    """The upper end, one-sided at `alpha`, of the arm's mean difference from the leader on the same rows."""
    import numpy as np

    from dspy_toolkit.gate.intervals import paired_interval

    assert arm is not None
    assert leader is not None
    groups = np.asarray(arm.groups, dtype=object)
    found, _ = paired_interval(np.asarray(arm.values), np.asarray(leader.values), groups, alpha)
    return found.high


def _finish(baseline: _Arm, arms: list[_Arm]) -> RaceResult:
    finalists = [baseline, *(arm for arm in arms if arm.verdict is None)]
    winner = min(finalists, key=lambda arm: (-arm.mean, ORDER.index(arm.name)))
    winner.end("won", f"{winner.mean:.1%} on {winner.holdout_rows} rows that no arm chose by.")
    for arm in (baseline, *arms):
        if arm.verdict is None:
            arm.end("dropped", f"{arm.mean:.1%} on {arm.holdout_rows} rows, {winner.title} {winner.mean:.1%}.")
    ranked = sorted((baseline, *arms), key=lambda arm: (arm is not winner, -arm.rounds, -arm.mean))
    usage = sum((arm.usage for arm in ranked), Usage())
    assert winner.result is not None
    assert winner.result.program is not None
    return RaceResult(
        winner=winner.name,
        program=winner.result.program,
        mean=winner.mean,
        baseline=baseline.mean,
        changed=baseline.result is not None and winner.result.prompt != baseline.result.prompt,
        arms=tuple(
            ArmResult(
                name=arm.name,
                verdict=arm.verdict or "dropped",
                reason=arm.reason,
                mean=arm.mean,
                holdout_rows=arm.holdout_rows,
                rounds=arm.rounds,
                lm_calls=arm.charged,
            )
            for arm in ranked
        ),
        trials=tuple(trial for arm in arms if arm.result is not None for trial in arm.result.trials),
        usage=usage.model_copy(update={"lm_calls": sum(arm.charged for arm in ranked)}),
    )
