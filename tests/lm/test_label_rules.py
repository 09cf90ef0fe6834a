"""Labels that are scored and chosen by a rule, in every format, alone and after other outputs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.adapter import FORMATS
from dspy_toolkit.lm.label_rules import LabelRule, label_rules_of, plain_rule
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.testing import fake_connection, fake_engine

LABELS = ("lora", "clip", "federated")
LEANS = {"lora": 0.6, "clip": 0.3, "federated": 0.1}


class Route(dspy.Signature):
    """Route it."""

    request: str = dspy.InputField()
    project: Literal["lora", "clip", "federated"] = dspy.OutputField()


class Why(dspy.Signature):
    """Route it."""

    request: str = dspy.InputField()
    reason: str = dspy.OutputField()
    project: Literal["lora", "clip", "federated"] = dspy.OutputField()


def predictor(rule: LabelRule, signature: Any = Route, name: Any = "plain") -> dspy.Predict:
    program = dspy.Predict(signature)
    pull(program, format=name, labels={"project": rule.model_dump(mode="json")})
    return program


def scores(request: GenerationRequest) -> dict[str, float]:
    assert request.label_scores is not None
    return dict(zip(request.label_scores.labels, LEANS.values(), strict=True))


def weighted(*bias: float) -> LabelRule:
    return plain_rule(LABELS).model_copy(update={"bias": bias})


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_bias_changes_what_is_chosen(name: Any, way: str, tmp_path: Path) -> None:
    connection = fake_connection(scores, tmp_path)
    with connection.context():
        for rule, best in (
            (plain_rule(LABELS), "lora"),
            (weighted(0.0, 1.0, 0.0), "clip"),
            (weighted(0.0, 0.0, 9.0), "federated"),
        ):
            program = predictor(rule, name=name)
            found = program(request="x") if way == "sync" else asyncio.run(program.acall(request="x"))
            assert found.project == best
            assert found.confidence == max(found.probabilities.values()) == found.probabilities[best]
            assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probabilities.keys() == set(LABELS)
    assert connection.lm.meter.usage.lm_calls == 3
    assert connection.lm.meter.usage.physical_calls == 1, "the rule is no part of the call"


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_scored_is_a_reply_that_the_format_reads(name: Any, tmp_path: Path) -> None:
    connection = fake_connection(scores, tmp_path)
    with connection.context():
        predictor(plain_rule(LABELS), name=name)(request="x")
    (request,) = fake_engine(connection).requests
    asked = request.label_scores
    assert asked is not None
    for label, value in zip(asked.labels, LABELS, strict=True):
        assert FORMATS[name]().parse(Route, f"{asked.prefix}{label}{asked.suffix}") == {"project": value}


@pytest.mark.parametrize("name", FORMATS)
def test_a_choice_after_reasoning_is_scored_behind_it(name: Any, tmp_path: Path) -> None:
    written = {"reason": "It says adapters.", "project": "lora"}
    reply = FORMATS[name]().format_assistant_message_content(Why, written).rstrip("\n")

    def answer(request: GenerationRequest) -> Any:
        return reply if request.label_scores is None else scores(request)

    connection = fake_connection(answer, tmp_path)
    with connection.context():
        found = predictor(weighted(0.0, 1.0, 0.0), Why, name)(request="x")
    assert (found.reason, found.project) == ("It says adapters.", "clip")
    asked = fake_engine(connection).requests[-1].label_scores
    assert asked is not None and "It says adapters." in asked.prefix
    assert FORMATS[name]().parse(Why, f"{asked.prefix}{asked.labels[1]}{asked.suffix}")["project"] == "clip"
    assert connection.lm.meter.usage.lm_calls == 2


def test_rules_are_part_of_the_state_and_of_what_counts_as_the_prompt() -> None:
    one, other = predictor(plain_rule(LABELS)), predictor(weighted(1.0, 0.0, 0.0))
    assert prompt_of(one) != prompt_of(other)
    again = fill(dspy.Predict(Route), state_of(other))
    assert label_rules_of(again)["project"].bias == (1.0, 0.0, 0.0)


def test_weights_of_other_labels_are_refused(tmp_path: Path) -> None:
    program = predictor(plain_rule(["lora", "clip"]))
    with (
        fake_connection([], tmp_path).context(),
        pytest.raises(ProgramError, match=r"lora, clip.*lora, clip, federated"),
    ):
        program(request="x")


def test_a_rule_that_is_none_is_refused(tmp_path: Path) -> None:
    program = dspy.Predict(Route)
    program.labels = {"project": {"labels": ["a"], "weights": [[1]], "bias": [0, 1]}}  # pyright: ignore[reportAttributeAccessIssue]
    with (
        fake_connection([], tmp_path).context(),
        pytest.raises(ProgramError, match=r"no rule.*1 labels need 1 biases.*there are 2"),
    ):
        program(request="x")
