"""Generators side by side in one pool, on a model that is a function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import dspy
import pytest

from dspy_toolkit.errors import EngineFailed, OptimizerError
from dspy_toolkit.optimizers import Compiled
from dspy_toolkit.optimizers.compile import compile_program
from dspy_toolkit.optimizers.generators.catalog import GENERATORS
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import Made
from dspy_toolkit.optimizers.pool.scoring import score_job
from dspy_toolkit.optimizers.problem import Start
from dspy_toolkit.optimizers.states import fill, prompt_of
from dspy_toolkit.store import digest
from tests.optimizers.toys import HINT, Toy, by_demos, by_instruction, choice, engine_of, profile, program, rows

BUDGET = 600
SEEN = {"train": 40, "val": 80}


def raced(toy: Toy, lm_calls: int = BUDGET, name: str = "race", **options: object) -> tuple[Compiled, int]:
    """(what a pool of all generators found, calls that reached the model)."""
    toy.train, toy.val = rows(40), rows(80, start=100)
    connection = toy.connect()
    found = toy.compile(choice(name, lm_calls, **SEEN), connection, profile=profile(**SEEN), **options)
    return found, len(engine_of(connection).requests)


def test_a_model_that_has_to_be_told_is_told(toy: Toy) -> None:
    toy.knows = by_instruction
    found, asked = raced(toy)
    assert found.winner in ("mipro", "gepa", "formats")
    assert (found.optimizer, found.changed, found.val_mean) == ("race", True, 1.0)
    assert found.val_baseline < 0.5
    assert asked == found.usage.physical_calls <= found.usage.lm_calls <= BUDGET
    assert found.summary.startswith(f"{found.winner} went from")
    assert found.generators[0].verdict == "won"
    better = fill(program(), toy.state(found))
    with toy.connect().context():
        assert better(text="the whale number 999").label == "blue"


def test_a_model_that_learns_from_demonstrations_gets_them_cheaply(toy: Toy) -> None:
    toy.knows = by_demos
    found, _ = raced(toy)
    assert found.val_mean == 1.0
    assert found.usage.lm_calls < BUDGET, "a program that is right everywhere ends the search"


@pytest.mark.parametrize("name", ["race", "auto"])
def test_nothing_helps(toy: Toy, name: str) -> None:
    found, _ = raced(toy, name=name)
    # The same answers from a shorter prompt are all that can be had.
    assert found.winner == found.generators[0].name == "formats"
    assert found.val_mean == found.val_baseline


def use(monkeypatch: pytest.MonkeyPatch, name: str, candidates: object) -> None:
    monkeypatch.setitem(GENERATORS, name, replace(GENERATORS[name], candidates=candidates))


def test_a_generator_that_fails_midway_is_left_behind_with_its_reason(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(shop: Workshop) -> Iterator[Made]:
        yield Made(with_parts(shop.student(), ["Say it."], None), "one")

        def broken() -> None:
            raise ValueError("optuna is not what it was")

        shop.attempt(broken, metric=shop.float_metric)

    # Asked for twice before others make the search end.
    monkeypatch.setitem(GENERATORS, "mipro", replace(GENERATORS["mipro"], candidates=broken, urgent=2))
    toy.knows = by_instruction
    found, _ = raced(toy)
    failed = next(each for each in found.generators if each.name == "mipro")
    assert "optuna is not what it was" in failed.reason
    assert found.winner in ("gepa", "formats")


def test_a_generator_that_has_nothing_to_give(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "gepa", lambda shop: iter(()))
    toy.knows = by_instruction
    found, _ = raced(toy)
    assert next(each for each in found.generators if each.name == "gepa").candidates == 0
    assert found.winner in ("mipro", "formats")


def test_a_generator_that_repeats_itself_is_not_asked_for_ever(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(shop: Workshop) -> Iterator[Made]:
        while True:
            yield Made(with_parts(shop.student(), ["Say it."], None), "again")

    for name in GENERATORS:
        use(monkeypatch, name, again)
    found, _ = raced(toy)
    assert len(found.trials) == 2
    assert sum(each.candidates for each in found.generators) == 1


def test_a_model_that_fails_ends_the_search(toy: Toy) -> None:
    toy.before = lambda number: EngineFailed("The engine stopped.") if number >= 50 else None
    with pytest.raises(EngineFailed):
        raced(toy)


def test_a_metric_that_fails_on_the_program_as_it_is_ends_the_search(toy: Toy) -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float("nan") if example.label == "red" else 0.0

    with pytest.raises(Exception, match="returned NaN"):
        raced(toy, metric=metric)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_a_constant_metric_changes_nothing(toy: Toy, score: float) -> None:
    found, _ = raced(toy, metric=lambda example, prediction: score)
    assert not found.changed


def test_a_search_needs_its_profile(toy: Toy) -> None:
    with pytest.raises(OptimizerError, match="needs the profile"):
        compile_program(toy.problem(), choice("race", 400))


def test_a_resumed_search_asks_nothing_twice(toy: Toy) -> None:
    toy.knows = by_instruction
    toy.train, toy.val = rows(40), rows(80, start=100)
    chosen, connection = choice("race", BUDGET, **SEEN), toy.connect()
    first, second = (toy.compile(chosen, connection, profile=profile(**SEEN)) for _ in range(2))
    assert (second.program, second.generators, second.usage.lm_calls) == (
        first.program,
        first.generators,
        first.usage.lm_calls,
    )
    assert second.usage.physical_calls == 0


def told() -> dspy.Module:
    return with_parts(program(), [HINT], None)


def test_a_start_is_one_more_candidate_and_is_built_on(toy: Toy) -> None:
    toy.knows = by_instruction
    found, _ = raced(toy, 100, "labelled", starts=(Start(told(), "from elsewhere@3"),))
    assert (found.winner, found.val_mean) == ("start", 1.0)
    assert found.trials[1].label == "from elsewhere@3"


def test_what_was_tried_is_not_tried_again_but_a_start_is(toy: Toy) -> None:
    first, _ = raced(toy, 200, "labelled")
    tried = frozenset(trial.prompt for trial in first.trials)
    second, _ = raced(toy, 200, "labelled", tried=tried)
    assert not {trial.prompt for trial in second.trials[1:]} & tried
    once_more = digest(prompt_of(told()))
    third, _ = raced(toy, 100, "labelled", tried=frozenset({once_more}), starts=(Start(told(), "before"),))
    assert once_more in {trial.prompt for trial in third.trials}


@pytest.mark.soak
def test_another_seed_draws_other_candidates_on_the_same_rows(toy: Toy) -> None:
    one, other = (raced(toy, 200, "labelled", seed=seed)[0] for seed in (0, 1))
    assert one.trials[0] == other.trials[0].model_copy(update={"seconds": one.trials[0].seconds})
    assert not {t.prompt for t in one.trials[1:]} & {t.prompt for t in other.trials[1:]}


def test_adapters_are_not_sent_to_workers(toy: Toy) -> None:
    made = choice("labelled", 400, **SEEN)
    settings = made.settings.model_copy(update={"optimizer": "finetune", "generators": ("finetune",)})
    with pytest.raises(OptimizerError, match=r"finetune.*Leave out --workers"):
        compile_program(
            toy.problem(),
            made.model_copy(update={"settings": settings}),
            profile=profile(**SEEN),
            elsewhere=lambda jobs: [],
        )


def test_candidates_that_are_scored_elsewhere_come_to_the_same_end(toy: Toy) -> None:
    toy.knows = by_instruction
    toy.train, toy.val = rows(40), rows(80, start=100)
    connection, asked = toy.connect(), []

    def elsewhere(jobs):
        asked.extend(jobs)
        return [score_job(toy.problem(connection), job) for job in jobs]

    chosen, seen = choice("race", 400, **SEEN), profile(**SEEN)
    here = compile_program(toy.problem(connection), chosen, profile=seen)
    there = compile_program(toy.problem(connection), chosen, profile=seen, elsewhere=elsewhere)
    assert (there.program, there.usage.lm_calls) == (here.program, here.usage.lm_calls)
    assert sum(job.last - job.first for job in asked) < there.usage.lm_calls
