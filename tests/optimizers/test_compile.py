"""What holds for every optimizer, driven by a model that answers rightly only when its prompt is better."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import DeadlineExceeded, EngineFailed, MetricError
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.optimizers import Budget, Choice, select
from dspy_toolkit.optimizers.states import fill, prompt_of
from tests.optimizers.toys import (
    HINT,
    Toy,
    by_demos,
    by_instruction,
    by_one_demo,
    choice,
    engine_of,
    profile,
    program,
    rows,
    searched,
)
from tests.samples import sample

Knows = Callable[[GenerationRequest], bool]
CASES: dict[str, tuple[Knows, int]] = {
    "labelled": (by_demos, 60),
    "knn": (by_demos, 60),
    "bootstrap": (by_demos, 70),
    "random": (by_demos, 60),
    "mipro": (by_instruction, 140),
    "gepa": (by_instruction, 180),
    "simba": (by_one_demo, 400),
}
each = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize("name", sample(CASES, "bootstrap", "gepa"))
"""Of what takes long and is the pool's matter: one that the pool draws from, one that draws for itself."""


def setting(toy: Toy, name: str) -> Choice:
    """Let the model learn what this optimizer can teach it."""
    toy.knows, calls = CASES[name]
    return choice(name, calls)


def forget() -> None:
    """As in a new process: DSPy's cache is on disk only."""
    dspy.cache.reset_memory_cache()


@each
def test_a_better_program_is_found_within_the_budget_and_in_silence(
    toy: Toy, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = setting(toy, name)
    connection, spent, said = toy.connect(), [], set()

    def progress(done: int, total: int, doing: str) -> None:
        spent.append((done, total))
        said.add(doing)

    compiled = toy.compile(chosen, connection, progress=progress)

    assert compiled.changed
    assert (compiled.val_mean, compiled.optimizer) == (1.0, name)
    assert compiled.val_baseline < 0.5
    assert compiled.winner == name
    assert (
        f"{name} went from {compiled.val_baseline:.1%} to 100.0% on {compiled.rows} validation rows" in compiled.summary
    )
    requests = engine_of(connection).requests
    assert len(requests) == compiled.usage.physical_calls <= compiled.usage.lm_calls <= chosen.lm_calls
    assert compiled.usage.prompt_tokens > 0 < compiled.usage.completion_tokens
    assert compiled.trials[0].label == "baseline"
    assert [trial.lm_calls for trial in compiled.trials] == sorted(trial.lm_calls for trial in compiled.trials)
    assert max(done for done, _ in spent) == compiled.usage.lm_calls
    assert {total for _, total in spent} == {chosen.lm_calls}
    assert any("100%" in doing for doing in said)
    better = fill(program(), toy.state(compiled))
    with connection.context():
        assert better(text="the whale number 999").label == "blue"
    assert capfd.readouterr() == ("", "")


@some
def test_nothing_better_is_said_as_nothing_changed(toy: Toy, name: str) -> None:
    chosen = setting(toy, name)
    toy.knows = lambda request: False
    compiled = toy.compile(chosen)
    assert not compiled.changed
    assert compiled.summary.startswith("Nothing changed: ")
    # These budgets are tiny: what is left is less than one candidate. GEPA has nothing to say here.
    assert compiled.usage.lm_calls >= 0.6 * chosen.lm_calls or name == "gepa"
    assert compiled.val_mean == compiled.val_baseline
    assert prompt_of(fill(program(), toy.state(compiled))) == prompt_of(program())


@some
@pytest.mark.parametrize("calls", [5, 21, 33])
def test_a_spent_budget_keeps_the_best_so_far(toy: Toy, name: str, calls: int) -> None:
    planned = setting(toy, name)
    # The settings of a larger budget, so that this one runs out wherever it does.
    compiled = toy.compile(planned.model_copy(update={"lm_calls": calls}), connection := toy.connect())
    assert compiled.exhausted or calls > 5
    assert compiled.usage.lm_calls <= calls
    assert len(engine_of(connection).requests) <= calls
    assert compiled.changed == (compiled.val_mean > compiled.val_baseline)
    if calls == 5:
        assert compiled.summary == "Nothing changed: 5 LM calls were spent before the baseline was scored."


def test_a_budget_is_spent_where_candidates_are_left_and_is_not_exceeded(toy: Toy) -> None:
    compiled = toy.compile(choice("labelled", 96))
    assert 92 <= compiled.usage.lm_calls <= 96
    assert not compiled.exhausted


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("simba", "knn")])
def test_three_training_rows_are_enough(toy: Toy, name: str) -> None:
    toy.knows = CASES[name][0]
    toy.train, toy.val = rows(3), rows(12, start=100)
    compiled = toy.compile(choice(name, CASES[name][1], train=3, val=12))
    assert compiled.usage.lm_calls <= CASES[name][1]
    # Three rows are no four demonstrations.
    assert compiled.changed == (name in ("mipro", "gepa"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("labelled", "knn", "simba")])
def test_a_program_of_several_predictors(toy: Toy, name: str) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = program(), program()

        def forward(self, text: str) -> dspy.Prediction:
            self.first(text=text)
            return self.second(text=text)

    toy.knows = CASES[name][0]
    chosen = choice(name, 260, predictors=2, calls_per_run=2.0)
    compiled = toy.compile(chosen, program=Two())
    assert compiled.usage.lm_calls <= 260
    assert compiled.changed
    assert set(toy.state(compiled)) == {"first", "second"}


@some
def test_a_program_that_dspy_compiled_before(toy: Toy, name: str) -> None:
    chosen, given = setting(toy, name), program()
    given._compiled = True
    before = given.dump_state()
    assert toy.compile(chosen, program=given).changed
    assert (given._compiled, given.dump_state()) == (True, before)


@each
def test_a_model_that_fails_is_an_error_not_a_wrong_answer(toy: Toy, name: str) -> None:
    """DSPy would score it 0 and search on."""
    chosen = setting(toy, name)
    toy.before = lambda number: DeadlineExceeded("Not finished within 1 s.") if number >= 35 else None
    connection = toy.connect()
    with pytest.raises(DeadlineExceeded, match="Not finished within 1 s"):
        toy.compile(chosen, connection)
    # Those that were asked at the same time, and no more.
    more = 8 if name == "simba" else 0  # `dspy.Parallel` hands out further rows until it has seen the error
    assert len(engine_of(connection).requests) <= 35 + 8 + more


def test_a_model_that_fails_once_leaves_nothing_behind(toy: Toy) -> None:
    """GEPA would keep the 0 that it took for the failure's score in its checkpoint."""
    chosen = setting(toy, "gepa")
    undisturbed = toy.compile(chosen, toy.connect(model="mlx/fake@steady"))
    failed = iter([EngineFailed("The engine stopped.")])
    toy.kinds.clear()
    toy.before = lambda number: next(failed, None) if number == 40 else None
    with pytest.raises(EngineFailed):
        toy.compile(chosen, toy.connect(model="mlx/fake@shaky"))
    again = toy.compile(chosen, toy.connect(model="mlx/fake@shaky"))
    assert searched(again) == searched(undisturbed)


@each
def test_a_metric_that_breaks_is_an_error(toy: Toy, name: str) -> None:
    chosen = setting(toy, name)

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 2.0 if example.label == "red" else float(example.label == prediction.label)

    with pytest.raises(MetricError, match=r"returned 2\.0, which is not in \[0, 1\]"):
        toy.compile(chosen, metric=metric)


@some
def test_a_killed_search_comes_to_the_same_end(toy: Toy, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = setting(toy, name)
    undisturbed = toy.compile(chosen, toy.connect(model="mlx/fake@one"))

    def interrupt(number: int) -> None:
        if number == 40:
            raise KeyboardInterrupt

    toy.kinds.clear()
    toy.before = interrupt
    running = set(threading.enumerate())
    before = sys.stdout, sys.stderr, [list(h.filters) for h in logging.getLogger("dspy").handlers]
    with pytest.raises(KeyboardInterrupt):
        toy.compile(chosen, toy.connect(model="mlx/fake@two"))
    assert (sys.stdout, sys.stderr, [list(h.filters) for h in logging.getLogger("dspy").handlers]) == before
    # Ctrl-C waits for nobody; a process would be gone with those that are under way, which here must not meet the next engine.
    for thread in set(threading.enumerate()) - running:
        if not thread.name.startswith("engine "):
            thread.join(timeout=20)
    forget()
    connection = toy.connect(model="mlx/fake@two")
    resumed = toy.compile(chosen, connection)
    assert searched(resumed) == searched(undisturbed)
    # All that had come back before the end, but for a few that were under way.
    assert len(engine_of(connection).requests) <= undisturbed.usage.physical_calls - 39 + 8
    assert resumed.usage.physical_calls == len(engine_of(connection).requests)
    gc.collect()
    assert capfd.readouterr() == ("", "")


@some
def test_the_same_again_is_all_from_the_cache(toy: Toy, name: str) -> None:
    chosen = setting(toy, name)
    connection = toy.connect()
    first = toy.compile(chosen, connection)
    forget()
    second = toy.compile(chosen, connection)
    assert searched(second) == searched(first)
    assert second.usage.physical_calls == 0
    assert len(engine_of(connection).requests) == first.usage.physical_calls


def test_other_rows_of_the_same_home_get_a_search_of_their_own(toy: Toy) -> None:
    """GEPA would take up the old result from its checkpoint, whatever program or data it came from."""
    chosen = setting(toy, "gepa")
    connection = toy.connect()
    assert toy.compile(chosen, connection).changed
    toy.val, toy.knows = rows(24, start=300), lambda request: False
    toy.train = rows(30, start=500)
    assert not toy.compile(chosen, connection).changed


def test_nothing_is_run_when_nothing_is_to_be_gained(toy: Toy) -> None:
    chosen = select(profile(baseline=1.0), "auto", Budget(name="light", lm_calls=300))
    compiled = toy.compile(chosen, connection := toy.connect())
    assert (compiled.optimizer, compiled.changed, compiled.usage.lm_calls) == ("none", False, 0)
    assert compiled.summary == "Nothing changed: there was nothing to gain."
    assert engine_of(connection).requests == []
    assert fill(program(), toy.state(compiled)).demos == []


def test_a_candidate_too_long_for_the_model_is_left_out(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    """The unchanged prompt has some 190 tokens and the reply may have 256; six demonstrations do not fit beside them."""
    chosen = setting(toy, "random")
    compiled = toy.compile(chosen, toy.connect(context_size=520))
    assert not compiled.changed
    assert "6 random demonstrations, set 1 is left out: The model cannot be given the prompts of" in caplog.text


def test_two_searches_at_once_do_not_disturb_each_other(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = {name: setting(toy, name) for name in ("mipro", "gepa")}
    connection: Connection = toy.connect()
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda name: toy.compile(chosen[name], connection), chosen))
    assert [result.val_mean for result in results] == [1.0, 1.0]
    assert capfd.readouterr() == ("", "")


def test_what_a_progress_display_prints_is_seen(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.compile(setting(toy, "mipro"), progress=lambda done, total, doing: print(f"{done}/{total} {doing}"))
    assert "140/140" not in (out := capsys.readouterr().out) and "proposing instructions" in out
    assert "Bootstrapping set" not in out


def test_instructions_come_from_the_reflection_model(toy: Toy) -> None:
    for name in ("mipro", "gepa"):
        compiled = toy.compile(setting(toy, name))
        assert toy.state(compiled)["signature"]["instructions"] == HINT


def test_values_are_plain(toy: Toy) -> None:
    compiled: Any = toy.compile(setting(toy, "bootstrap"))
    assert type(compiled).model_validate_json(compiled.model_dump_json()) == compiled
