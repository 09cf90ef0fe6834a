"""Where DSPy's optimizers go wrong by themselves, and here do not."""

from __future__ import annotations

from dataclasses import replace

import dspy
import pytest

from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.metrics import Score
from dspy_toolkit.optimizers.states import fill
from tests.optimizers.toys import (
    Toy,
    asked_field,
    by_demos,
    by_instruction,
    choice,
    demos_in,
    engine_of,
    program,
    right_answer,
    rows,
)


def with_feedback(example: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
    """A metric in GEPA's form: `bool(dspy.Prediction(score=0.0))` is True."""
    right = example.label == prediction.label
    return dspy.Prediction(score=float(right), feedback="" if right else f"It is {example.label}.")


def graded(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """A wrong answer is worth something."""
    return Score(value=1.0 if example.label == prediction.label else 0.4)


def shown_to(connection: Connection) -> set[tuple[str, str]]:
    """(text, label) of every demonstration in a prompt of the task."""
    requests = [request for request in engine_of(connection).requests if not asked_field(request)]
    return {pair for request in requests for pair in demos_in(request)}


@pytest.mark.parametrize("name", ["bootstrap", "mipro"])
@pytest.mark.parametrize("metric", [with_feedback, graded])
def test_wrong_answers_never_become_demonstrations(toy: Toy, name: str, metric: object) -> None:
    toy.knows = by_demos
    connection = toy.connect()
    compiled = toy.compile(choice(name, 180), connection, metric=metric)
    assert compiled.changed
    seen = shown_to(connection)
    assert len(seen) > 6
    assert all(label == right_answer(text) for text, label in seen)


def test_a_small_validation_split_is_enough_for_mipro(toy: Toy) -> None:
    """Its minibatches of 35 would raise."""
    toy.val, toy.knows = rows(7, start=100), by_instruction
    compiled = toy.compile(choice("mipro", 140, val=7))
    assert compiled.val_mean == 1.0
    assert len(compiled.trials) > 3


def test_mipro_never_takes_validation_rows_from_the_training_rows(toy: Toy) -> None:
    toy.knows = by_instruction
    connection = toy.connect()
    toy.compile(choice("mipro", 140), connection)
    kept = set(toy.val["text"])
    assert not kept & {text for text, _ in shown_to(connection)}


@pytest.mark.parametrize("name", ["mipro", "gepa"])
def test_a_reflection_that_cannot_be_read_ends_in_no_change(toy: Toy, name: str) -> None:
    """MIPROv2 would die of it, after it has spent a part of its budget."""
    toy.knows = by_instruction
    connection = toy.connect(check_grammar=False)
    original = toy.reply

    def reply(request: GenerationRequest) -> object:
        whole = request.messages[0].content
        return "no field at all" if "_instruction ## ]]" in whole else original(request)

    engine_of(connection)._function = reply
    compiled = toy.compile(choice(name, 180), connection)
    assert not compiled.changed
    assert compiled.trials[0].label == "baseline"
    assert 0 < compiled.val_baseline < 0.5


def test_many_errors_do_not_end_an_evaluation(toy: Toy) -> None:
    """DSPy's Evaluate gives up after ten; replies that cannot be read are wrong answers here."""
    toy.knows = by_instruction
    connection = toy.connect(check_grammar=False)
    original = toy.reply

    def reply(request: GenerationRequest) -> object:
        answer = original(request)
        wrong = isinstance(answer, dict) and "label" in answer and not toy.knows(request)
        return "no label" if wrong else answer

    engine_of(connection)._function = reply
    for name in ("mipro", "gepa"):
        compiled = toy.compile(choice(name, 180), connection)
        assert (compiled.val_baseline, compiled.val_mean) == (0.0, 1.0), name


def test_graded_scores_are_compared_as_means(toy: Toy) -> None:
    toy.knows = by_instruction
    compiled = toy.compile(choice("gepa", 180), metric=graded)
    assert 0.4 <= compiled.val_baseline < 0.7
    assert compiled.val_mean == 1.0


def test_the_reflection_model_may_be_another_and_shares_the_budget(toy: Toy) -> None:
    toy.knows = by_instruction
    task, writes = toy.connect(model="mlx/fake@task"), toy.connect(model="mlx/fake@writer")
    connection = replace(task, others={"reflection": lambda: writes.reflection})
    chosen = choice("mipro", 140)
    compiled = toy.compile(chosen, connection)
    asked = len(engine_of(task).requests), len(engine_of(writes).requests)
    assert asked[1] >= 5
    assert sum(asked) == compiled.usage.physical_calls
    assert compiled.usage.lm_calls <= chosen.lm_calls
    # A quarter of the fake's context, and a temperature of its own where the proposer sets none.
    assert {request.max_tokens for request in engine_of(writes).requests} == {2048}
    assert {request.temperature for request in engine_of(writes).requests} == {1.0}
    assert all(request.max_tokens == 256 for request in engine_of(task).requests)


def test_a_bootstrapped_program_keeps_a_model_of_its_own(toy: Toy) -> None:
    """DSPy makes its student anew, without it."""
    toy.knows = by_demos
    own = toy.connect(model="mlx/fake@own")
    given = program()
    given.set_lm(own.lm)
    compiled = toy.compile(choice("bootstrap", 90), toy.connect(model="mlx/fake@other"), program=given)
    assert compiled.changed
    better = fill(given.deepcopy(), toy.state(compiled))
    assert better.get_lm().model == "mlx/fake@own"
