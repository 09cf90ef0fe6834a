"""The race: who leaves when, who wins, and what it charges; on arms whose true scores are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Budget, Choice, select
from dspy_toolkit.optimizers.race.arm_run import BASELINE, ArmRun, ArmRunResult
from dspy_toolkit.optimizers.race.race import ERROR, RaceResult, race
from dspy_toolkit.store import Ref
from tests.optimizers.past_runs import past
from tests.optimizers.toys import profile

FEW = 200
MANY = pytest.param(1000, marks=pytest.mark.soak)
PROFILE = profile(train=300, val=260, pass_rate=0.3)
MEDIUM = Budget(name="medium", lm_calls=1200)
PROGRAM = Ref(sha256="0" * 64, kind="json")


class Arms:
    """Arms whose programs have known true scores, on rows that are easy or hard for all of them alike."""

    def __init__(self, scores: dict[str, float], seed: int = 0, fails: Sequence[str] = ()) -> None:
        self.scores, self.seed, self.fails = scores, seed, fails
        self.arm_runs: list[ArmRun] = []

    def __call__(self, arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
        self.arm_runs += arm_runs
        return [self.run(arm_run) for arm_run in arm_runs]

    def run(self, arm_run: ArmRun) -> ArmRunResult:
        if arm_run.arm in self.fails:
            return ArmRunResult(arm=arm_run.arm, error="ValueError: it broke")
        draws = random.Random(self.seed)
        luck = [draws.random() for _ in range(arm_run.holdout_rows)]
        own = random.Random(f"{self.seed} {arm_run.arm}")
        # Half of what decides an item is common to the arms, as the hardness of a row is.
        values = tuple(
            float((own.random() if own.random() < 0.5 else each) < self.scores[arm_run.arm]) for each in luck
        )
        return ArmRunResult(
            arm=arm_run.arm,
            program=PROGRAM,
            prompt=arm_run.arm,
            values=values,
            groups=tuple(str(number) for number in range(arm_run.holdout_rows)),
            search_calls=0 if arm_run.arm == BASELINE else arm_run.lm_calls,
            holdout_calls=arm_run.holdout_rows,
        )


def choose(budget: Budget = MEDIUM, **changes: object) -> Choice:
    return select(PROFILE.model_copy(update=changes), "race", budget)


USUAL = choose()


def run(arms: Arms, choice: Choice = USUAL) -> RaceResult:
    return race(choice, PROFILE, arms)


def scores(best: str | None, at: float = 0.75, others: float = 0.35) -> dict[str, float]:
    return {
        name: at if name == best else others for name in (BASELINE, "labelled", "bootstrap", "random", "mipro", "gepa")
    }


@pytest.mark.parametrize("seeds", [FEW, MANY])
@pytest.mark.parametrize("best", ["labelled", "random", "gepa"])
def test_the_best_arm_wins_with_the_stated_error_rate(best: str, seeds: int) -> None:
    wrong = sum(run(Arms(scores(best, 0.6, 0.35), seed)).winner != best for seed in range(seeds))
    # Not more often than chance makes it of that rate.
    assert wrong <= binom.ppf(0.999, seeds, ERROR)


@pytest.mark.parametrize("seeds", [FEW, MANY])
def test_the_best_arm_is_not_dropped_for_being_worse_more_often_than_stated(seeds: int) -> None:
    """Also where the others are hardly worse, so that the leader of a round is often another."""

    def dropped(seed: int) -> bool:
        found = run(Arms({**scores(None), "gepa": 0.40}, seed))
        return any(arm.name == "gepa" and arm.reason.startswith("Worse than") for arm in found.arms)

    assert sum(map(dropped, range(seeds))) <= binom.ppf(0.999, seeds, ERROR)


def test_arms_that_are_clearly_worse_leave_early_and_leave_their_part_to_the_others() -> None:
    found = run(Arms({**scores(None, others=0.05), "gepa": 0.95}))
    rounds = {arm.name: arm.rounds for arm in found.arms}
    calls = {arm.name: arm.lm_calls for arm in found.arms}
    assert found.winner == "gepa"
    assert rounds["gepa"] > max(rounds[name] for name in ("labelled", "bootstrap", "random", "mipro"))
    assert calls["gepa"] > 3 * max(calls[name] for name in ("labelled", "bootstrap", "random", "mipro"))
    assert "Worse than gepa after round 1" in next(arm.reason for arm in found.arms if arm.name == "mipro")


def test_of_equal_arms_the_cheapest_wins() -> None:
    found = run(Arms(dict.fromkeys(scores(None), 1.0)))
    assert found.winner == BASELINE
    assert not found.changed
    assert "the baseline 100.0%" in next(arm.reason for arm in found.arms if arm.name == "labelled")


def test_an_arm_that_fails_leaves_and_the_race_goes_on() -> None:
    found = run(Arms(scores("random"), fails=["gepa", "labelled"]))
    assert found.winner == "random"
    verdicts = {arm.name: (arm.verdict, arm.reason) for arm in found.arms}
    assert verdicts["gepa"] == verdicts["labelled"] == ("failed", "ValueError: it broke")
    assert found.arms[0].name == "random"


def test_a_program_that_cannot_be_scored_ends_the_race() -> None:
    with pytest.raises(OptimizerError, match="cannot be scored: ValueError: it broke"):
        run(Arms(scores("random"), fails=[BASELINE]))


def test_no_holdout_row_is_one_that_an_arm_chose_by() -> None:
    arms = Arms(scores("random"))
    choice = choose()
    run(arms, choice)
    assert {arm_run.rows for arm_run in arms.arm_runs} == {choice.settings.rows}
    holdout = [arm_run.holdout_rows for arm_run in arms.arm_runs if arm_run.arm == BASELINE]
    assert holdout == sorted(set(holdout))
    assert choice.settings.rows + holdout[-1] <= PROFILE.val
    assert choice.val_rows >= choice.settings.rows + holdout[-1]


def test_an_arm_goes_on_from_where_it_was() -> None:
    arms = Arms(scores(None, others=0.5))
    run(arms)
    for name in ("random", "mipro", "gepa"):
        allowances = [arm_run.lm_calls for arm_run in arms.arm_runs if arm_run.arm == name]
        assert allowances == sorted(allowances)
        assert len(set(allowances)) > 1


def test_what_an_arm_did_before_is_charged_once() -> None:
    arms = Arms(scores("random"))
    found = run(arms)
    for arm in found.arms:
        arm_runs = [arm_run for arm_run in arms.arm_runs if arm_run.arm == arm.name]
        assert arm.lm_calls == pytest.approx(
            (0 if arm.name == BASELINE else arm_runs[-1].lm_calls) + arm_runs[-1].holdout_rows, abs=2
        )


@settings(max_examples=60, deadline=None)
@given(
    lm_calls=st.integers(60, 6000),
    val=st.integers(4, 400),
    train=st.integers(4, 400),
    cost=st.sampled_from([1.0, 2.0, 3.5]),
    predictors=st.integers(1, 3),
    pass_rate=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_the_budget_holds(
    lm_calls: int, val: int, train: int, cost: float, predictors: int, pass_rate: float, seed: int
) -> None:
    seen = profile(
        train=train, val=val, calls_per_run=cost, predictors=predictors, pass_rate=pass_rate, reflector_ok=seed % 2 == 0
    )
    try:
        choice = select(seen, "race", Budget(name="b", lm_calls=lm_calls))
    except OptimizerError as error:
        assert "race cannot run here" in str(error)
        return
    draws = random.Random(seed)
    arms = Arms({name: draws.random() for name in scores(None)}, seed)

    def with_costs(arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
        return [
            result.model_copy(update={"holdout_calls": math.ceil(len(result.values) * cost)})
            for result in arms(arm_runs)
        ]

    found = race(choice, seen, with_costs)
    assert found.usage.lm_calls <= lm_calls + len(found.arms)  # the calls of each arm are rounded up
    assert found.usage.lm_calls == sum(arm.lm_calls for arm in found.arms)
    assert {arm.name for arm in found.arms} == {BASELINE, *choice.settings.arms}
    assert all(arm.reason for arm in found.arms)
    assert [arm.verdict for arm in found.arms].count("won") == 1
    assert set(choice.alternatives) | set(choice.settings.arms) == set(scores(None)) - {BASELINE}


def test_a_small_budget_leaves_the_dear_arms_out_and_says_so() -> None:
    choice = choose(Budget(name="light", lm_calls=300))
    assert {"labelled", "random"} <= set(choice.settings.arms)
    assert "more than half of the light budget of 300" in choice.alternatives["mipro"]


def test_what_auto_would_take_enters_before_what_is_cheaper() -> None:
    light = Budget(name="light", lm_calls=300)
    assert choose(light).settings.arms[0] == select(PROFILE, "auto", light).optimizer == "gepa"
    past_gains = [past("mipro", 0.2, number) for number in range(3)] + [past("gepa", 0.0, 9)]
    assert select(PROFILE, "race", light, past_gains).settings.arms[0] == "mipro"


def test_an_arm_that_the_profile_speaks_against_is_left_out() -> None:
    choice = choose(reflector_ok=False, reflector_note="it gave the old instruction back")
    assert set(choice.settings.arms) == {"labelled", "random", "bootstrap", "mipro"}
    assert "it gave the old instruction back" in choice.alternatives["gepa"]


def test_no_budget_for_any_arm_is_an_error() -> None:
    with pytest.raises(OptimizerError, match="race cannot run here .* Take a larger --budget"):
        choose(Budget(name="tiny", lm_calls=20))


def test_the_runner_may_run_the_arms_of_a_round_in_any_order() -> None:
    arms = Arms(scores("mipro"))

    def backwards(arm_runs: Sequence[ArmRun]) -> list[ArmRunResult]:
        done = {arm_run.arm: arms.run(arm_run) for arm_run in reversed(arm_runs)}
        return [done[arm_run.arm] for arm_run in arm_runs]

    runner: Callable[[Sequence[ArmRun]], list[ArmRunResult]] = backwards
    assert race(choose(), PROFILE, runner) == run(Arms(scores("mipro")))
