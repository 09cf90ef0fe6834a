"""Whether the reflection model can write an instruction is tried, not assumed; and the look that a probe takes."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import EngineBusy, EngineFailed, MetricError, RequestRefused
from dspy_toolkit.metrics import Score, exact_match
from dspy_toolkit.optimizers import Profile, probe
from dspy_toolkit.optimizers.generators.reflection import try_reflection
from tests.optimizers.toys import HINT, SPEC, Colour, Toy, by_instruction, engine_of, program


def look(toy: Toy, metric: Any = exact_match, **options: Any) -> Profile:
    return probe(toy.problem(toy.connect(**options), metric=metric, threads=4))


@pytest.mark.parametrize(
    ("written", "usable", "note"),
    [
        (HINT, True, "it wrote 'Say the colour of the thing"),
        ("Tell whether it is blue or not, please.", True, "it wrote"),
        ("Label it.", False, "its instruction has 9 characters: 'Label it.'"),
        ("Please be a kind and helpful assistant.", False, "names neither an output nor an answer"),
        (RequestRefused("The prompt has 9000 tokens."), False, "it could not answer: The prompt has 9000 tokens."),
    ],
)
def test_what_counts_as_usable(toy: Toy, written: str | Exception, usable: bool, note: str) -> None:
    toy.instruction = written
    found, said = try_reflection(program(), toy.val, SPEC, toy.connect())
    assert (found, note in said) == (usable, True), said


def test_the_old_instruction_again_is_not_usable(toy: Toy) -> None:
    old = program()
    old.signature = old.signature.with_instructions(HINT)
    assert try_reflection(old, toy.val, SPEC, toy.connect()) == (False, "it gave the old instruction back")


def test_a_reply_that_cannot_be_read_is_not_usable(toy: Toy) -> None:
    toy.before = lambda number: "no field"
    assert try_reflection(program(), toy.val, SPEC, toy.connect(check_grammar=False)) == (
        False,
        "its reply could not be read",
    )


@pytest.mark.parametrize("fault", [EngineBusy("The queue is full."), EngineFailed("The engine stopped.")])
def test_a_fault_that_may_pass_is_raised(toy: Toy, fault: Exception) -> None:
    """Taken for an answer, it would decide which optimizer runs."""
    toy.instruction = fault
    with pytest.raises(type(fault)):
        try_reflection(program(), toy.val, SPEC, toy.connect())


def test_a_profile(toy: Toy) -> None:
    seen = look(toy)
    assert (seen.train, seen.val, seen.probed, seen.predictors) == (30, 24, 24, 1)
    assert seen.baseline == seen.pass_rate == pytest.approx(4 / 24)
    assert (seen.parse_failures, seen.metric_errors, seen.graded, seen.feedback) == (0, 0, False, True)
    assert seen.calls_per_run == 1.0
    assert seen.prompt_tokens > 0 < seen.completion_tokens
    assert seen.reflector_ok
    assert toy.kinds["task"] == 24


def test_the_same_profile_from_the_cache(toy: Toy) -> None:
    first, second = (look(toy, model="mlx/fake@probe") for _ in range(2))
    dynamic = {"seconds_per_call", "completion_tokens"}
    assert first.model_dump(exclude=dynamic) == second.model_dump(exclude=dynamic)
    assert second.seconds_per_call == 0


def test_graded_scores_without_feedback(toy: Toy) -> None:
    toy.knows = by_instruction
    seen = look(toy, lambda example, prediction: Score(value=1.0 if example.label == prediction.label else 0.25))
    assert (seen.graded, seen.feedback) == (True, False)
    assert seen.pass_rate < seen.baseline


def raises(example: dspy.Example, prediction: dspy.Prediction) -> float:
    raise KeyError("score")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (raises, "raised KeyError: 'score' .*Correct the metric"),
        (lambda example, prediction: float("nan"), "returned NaN. Return 0"),
        (lambda example, prediction: 2.0, r"returned 2.0, which is not in \[0, 1\]. Divide"),
        (lambda example, prediction: "good", "returned 'good'. Return a bool"),
    ],
)
def test_a_broken_metric_is_found_before_anything_is_spent(toy: Toy, metric: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        look(toy, metric)


def test_rows_hold_all_of_an_answer_but_no_reasoning(toy: Toy) -> None:
    """A demonstration with a trace says more than its row only where the program reasons."""
    assert probe(toy.problem()).labelled
    connection, answer = toy.connect(), toy.reply

    def reply(request: Any) -> Any:
        found = answer(request)
        return {"reasoning": "It is so.", **found} if "label" in found else found

    engine_of(connection)._function = reply
    assert not probe(toy.problem(connection, program=dspy.ChainOfThought(Colour))).labelled
