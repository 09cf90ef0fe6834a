"""A race: the optimizers start small, those that are shown to be worse leave, the rest go on with what is left of the budget.

Every arm searches on the same few validation rows, and its best program is then scored on *items*: further validation rows,
the same for all arms, that no arm chose by, so that the arm with the most candidates is not the winner by luck. The program
as it came runs along as the arm `none`.

After each round an arm leaves when the paired interval of its difference from the leader lies below zero. The level is such
that the best arm leaves with a probability of at most ERROR, over all rounds and arms together. An arm also leaves when
what is left of the budget gives it no further step. The next round doubles the items, and divides the next share of the
budget among the arms that can use it. In the end the arm with the highest mean wins; of equal ones the cheaper.

Budgets are charged in logical calls. What an arm did in an earlier round is charged once: its next lap begins from the
beginning, with the cache of replies in place of the model (see `laps`).

Not covered: who runs the laps. That is an argument, so that they may run one after another here, or each on another machine.
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
"""Runs the laps of one round, in any order or all at once; the results come in the order of the laps."""

ERROR = 0.1
"""The probability that the best arm is dropped for being worse."""
FIRST_SHARE = 0.5
"""Of the budget, that the first round may take at most."""
LEAST_ROWS, MOST_ROWS = 10, 40
"""Validation rows that arms choose by; the first round has as many items."""
MOST_ROUNDS = 3
"""More of them leave too little for each to search with."""
ITEMS_SHARE = 0.1
"""Of the budget, that scoring one program on the last round's items may cost."""
ORDER = (BASELINE, *reversed(OPTIMIZERS))
"""From the cheapest program to the dearest: the earlier wins where two arms are equal."""


class ArmResult(Frozen):
    """How one arm of a race fared."""

    name: str
    verdict: Literal["won", "dropped", "left out", "failed"]
    reason: str
    """One sentence, with the numbers."""
    mean: float = 0.0
    """Of its best program on `items` validation rows that no arm chose by."""
    items: int = 0
    rounds: int = 0
    """That it took part in."""
    lm_calls: int = 0
    """Logical."""


class RaceResult(Frozen):
    """What a race came to."""

    winner: str
    program: Ref
    """The winner's state."""
    mean: float
    """Of the winner, on the items of the last round."""
    baseline: float
    """Of the baseline, on the same items."""
    arms: tuple[ArmResult, ...]
    """The winner first, then by rounds and mean."""
    changed: bool
    """Whether the winner's prompt differs from that of the baseline."""
    trials: tuple[Trial, ...]
    """Of all arms."""
    usage: Usage
    """Of all arms. Its logical calls are those that were charged: what a lap repeats of an earlier one is not."""


@dataclass
class _Arm:
    name: str
    least: int
    """Calls that its first candidate takes, with those for what it starts from."""
    start: int
    """Of these, for what it starts from."""
    allowance: int = 0
    settings: OptimizerSettings = field(default_factory=NoSearch)
    result: ArmRunResult | None = None
    """Of the latest lap that gave a program."""
    item_calls: int = 0
    """Logical, each item charged once for each program."""
    usage: Usage = field(default_factory=Usage)
    """Of all its laps, repetitions included."""
    rounds: int = 0
    verdict: Literal["won", "dropped", "left out", "failed"] | None = None
    reason: str = ""

    def plan(self, profile: Profile, calls: int, rows: int) -> Plan | Infeasible:
        """What it would do with `calls` from its beginning."""
        return OPTIMIZERS[self.name].plan(profile, Budget(name="remaining", lm_calls=calls - self.start), rows)

    @property
    def charged(self) -> int:
        return self.item_calls + (self.result.search_calls if self.result else 0)

    @property
    def mean(self) -> float:
        return sum(self.result.values) / len(self.result.values) if self.result else 0.0


def plan_race(
    names: Sequence[str], profile: Profile, budget: Budget, *, started: bool = False
) -> tuple[RaceSettings, dict[str, str]]:
    """(settings of a race between those that the budget has room for, reason against each of the others).

    The first of `names` that can run enters first, then the cheapest, as long as the first candidates of all take no more than
    FIRST_SHARE of the budget.

    Args:
        names: in the order of preference. The first is what would run alone; without it a race would hardly be one.
        started: whether the arms start from another program, which each scores beside the one that came.
    """
    cost = run_cost(profile)
    share = int(budget.lm_calls / (50 * cost))
    rows = max(1, min(max(share, LEAST_ROWS), MOST_ROWS, profile.val // 2))
    most = min(profile.val - rows, max(int(ITEMS_SHARE * budget.lm_calls / cost), rows))
    items = min(rows, most)
    start_calls = math.ceil(2 * rows * cost) if started else 0
    needed = {
        name: None if (calls := least(name, profile, rows, budget.lm_calls)) is None else calls + start_calls
        for name in names
    }
    arms, left_out = [], {}
    room = FIRST_SHARE * budget.lm_calls - items * cost
    favourite = next((name for name in names if needed[name] is not None), None)

    def turn(name: str) -> tuple[bool, bool, int, int]:
        return name != favourite, needed[name] is None, needed[name] or 0, ORDER.index(name)

    for name in sorted(names, key=turn):
        calls = needed[name]
        if items < 1 or calls is None:
            settled = OPTIMIZERS[name].plan(profile, budget, rows)
            left_out[name] = (
                settled.reason if isinstance(settled, Infeasible) else "there are no validation rows to race on"
            )
        elif calls + items * cost > room:
            left_out[name] = (
                f"its first candidate costs {calls} LM calls, and with the others it is more than half of the "
                f"{budget.name} budget of {budget.lm_calls}"
            )
        else:
            arms.append(name)
            room -= calls + items * cost
    last = _items(items, most, _rounds(len(arms)))
    settings = RaceSettings(
        val_rows=rows + last,
        arms=tuple(arms),
        rows=rows,
        holdout_rows=items,
        most_holdout_rows=most,
        start_calls=start_calls,
    )
    return settings, left_out


def race(choice: Choice, profile: Profile, run: Runner, say: Callable[[int, str], None] | None = None) -> RaceResult:
    """Run a race.

    Args:
        choice: of `select(profile, "race", budget)`.
        profile: the one it was made from.
        run: runs laps.
        say: told the logical calls charged so far and what is going on.

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
    items = settings.holdout_rows
    for number in range(1, rounds + 1):
        running = [arm for arm in arms if arm.verdict is None]
        spent = sum(arm.charged for arm in (*arms, baseline))
        running = _allow(running, profile, rows, items, choice.lm_calls - spent, rounds - number + 1, first=number == 1)
        laps = [
            ArmRun(arm=arm.name, settings=arm.settings, lm_calls=arm.allowance, rows=rows, items=items)
            for arm in (baseline, *running)
        ]
        if say is not None:
            say(spent, f"round {number} of {rounds}: {', '.join(arm.name for arm in running)}")
        for arm, result in zip((baseline, *running), run(laps), strict=True):
            _take(arm, result)
        if baseline.result is None:
            raise OptimizerError(f"The baseline cannot be scored: {baseline.reason}")
        _drop_worse([baseline, *(arm for arm in running if arm.verdict is None)], len(arms), rounds, number)
        if not any(arm.verdict is None for arm in arms):
            break
        items = _items(items, most, 2)
    return _finish(baseline, arms)


def _rounds(arms: int) -> int:
    return min(1 + arms, MOST_ROUNDS)


def _items(first: int, most: int, rounds: int) -> int:
    return min(first * 2 ** (rounds - 1), most)


def _allow(
    running: list[_Arm], profile: Profile, rows: int, items: int, left: int, rounds_left: int, *, first: bool
) -> list[_Arm]:
    """Divide this round's part of what is left of the budget; the arms that go on.

    Those that can use less than an equal part leave the rest of it to the others.
    """
    cost = run_cost(profile)
    scoring = math.ceil(items * cost)
    # Items that were scored before and belong to the same program cost nothing; this is the most they can cost.
    running = sorted(running, key=lambda arm: (-arm.mean, ORDER.index(arm.name)))
    while len(running) > 1 and (len(running) + 1) * scoring + (sum(a.least for a in running) if first else 0) > left:
        last = running.pop()
        last.verdict = "dropped"
        last.reason = (
            f"It was last after {last.rounds} rounds, and the budget has no room for another round of it."
            if last.rounds
            else "The budget has no room for its first round."
        )
    pool = max(left - (len(running) + 1) * scoring, 0)
    if not first:
        pool //= rounds_left
    else:
        pool = max(pool // rounds_left, sum(arm.least for arm in running))
    useful = {arm.name: _useful(arm, profile, rows, pool) for arm in running}
    for place, arm in enumerate(sorted(running, key=lambda arm: useful[arm.name])):
        extra = min(pool // (len(running) - place), useful[arm.name])
        if first:
            extra = max(extra, arm.least)
        pool = max(pool - extra, 0)
        settled = arm.plan(profile, arm.allowance + extra, rows)
        if not isinstance(settled, Infeasible) and settled.settings != arm.settings:
            arm.allowance, arm.settings = arm.allowance + extra, settled.settings
    return running


def _useful(arm: _Arm, profile: Profile, rows: int, pool: int) -> int:
    """Calls, up to `pool`, that the arm could make something of."""
    settled = arm.plan(profile, arm.allowance + pool, rows)
    if isinstance(settled, Infeasible) or settled.settings == arm.settings:
        return 0
    # A little more than predicted: predictions are means.
    return max(min(pool, math.ceil(1.15 * settled.predicted_lm_calls) + arm.start - arm.allowance), 0)


def _take(arm: _Arm, result: ArmRunResult) -> None:
    arm.rounds += 1
    arm.usage += result.usage
    if result.error or result.program is None:
        arm.verdict, arm.reason = "failed", result.error
        return
    before = arm.result
    known = len(before.values) if before is not None and before.prompt == result.prompt else 0
    arm.item_calls += round(result.item_calls * (1 - known / len(result.values)))
    arm.result = result


def _drop_worse(running: list[_Arm], arms: int, rounds: int, number: int) -> None:
    """Drop the arms that the paired test shows to be worse than the leader. The baseline only runs along."""
    leader = min(running, key=lambda arm: (-arm.mean, ORDER.index(arm.name)))
    alpha = ERROR / (max(arms, 1) * rounds)
    for arm in running:
        if arm is leader or arm.name == BASELINE:
            continue
        high = upper_end(arm.result, leader.result, alpha)
        if high < 0:
            arm.verdict = "dropped"
            arm.reason = (
                f"Worse than {_called(leader.name)} after round {number}: {100 * (arm.mean - leader.mean):+.1f} points on "
                f"{_count(arm)} rows, at most {100 * high:+.1f}."
            )


def upper_end(arm: ArmRunResult | None, leader: ArmRunResult | None, alpha: float) -> float:
    """The upper end, one-sided at `alpha`, of the arm's mean difference from the leader on the same items."""
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
    for arm in (baseline, *arms):
        if arm is winner:
            arm.verdict, arm.reason = "won", f"{arm.mean:.1%} on {_count(arm)} rows that no arm chose by."
        elif arm.verdict is None:
            arm.verdict = "dropped"
            arm.reason = f"{arm.mean:.1%} on {_count(arm)} rows, {_called(winner.name)} {winner.mean:.1%}."
    everybody = sorted((baseline, *arms), key=lambda arm: (arm is not winner, -arm.rounds, -arm.mean))
    usage = sum((arm.usage for arm in everybody), Usage())
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
                items=_count(arm),
                rounds=arm.rounds,
                lm_calls=arm.charged,
            )
            for arm in everybody
        ),
        trials=tuple(trial for arm in arms if arm.result is not None for trial in arm.result.trials),
        usage=usage.model_copy(update={"lm_calls": sum(arm.charged for arm in everybody)}),
    )


def _count(arm: _Arm) -> int:
    return len(arm.result.values) if arm.result else 0


def _called(name: str) -> str:
    return "the baseline" if name == BASELINE else name
