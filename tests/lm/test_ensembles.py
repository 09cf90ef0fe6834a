"""Several prompts that answer together: what becomes of their answers, and that every path asks all of them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.ensembles import joined
from dspy_toolkit.lm.label_rules import plain_rule
from dspy_toolkit.lm.levers import levers_of, pull
from dspy_toolkit.optimizers.generators.ensembles import rules, together
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.testing import fake_connection, fake_engine

LABELS = ("red", "green", "blue")


class Colour(dspy.Signature):
    """Name the colour."""

    text: str = dspy.InputField()
    label: Literal["red", "green", "blue"] = dspy.OutputField()


class Read(dspy.Signature):
    """Read the note."""

    note: str = dspy.InputField()
    reasoning: str = dspy.OutputField()
    size: int = dspy.OutputField()
    label: Literal["red", "green", "blue"] = dspy.OutputField()


def prompt(instructions: str, **levers: Any) -> dspy.Predict:
    made = dspy.Predict(Colour.with_instructions(instructions))
    pull(made, **{"format": "plain", **levers})
    return made


def three(**levers: Any) -> list[dspy.Module]:
    made = [prompt(f"Prompt {number}.", **levers) for number in range(3)]
    made[1].demos = [dspy.Example(text="own", label="blue").with_inputs("text")]
    return list(made)


@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=9))
def test_the_majority_takes_what_most_gave_and_of_equals_the_earlier(given_: list[str]) -> None:
    found = joined("majority", Colour, [{"label": label} for label in given_])
    counts = {label: given_.count(label) for label in given_}
    best = [label for label in given_ if counts[label] == max(counts.values())]
    assert found == {"label": best[0]}


def test_a_field_is_voted_on_and_free_text_comes_from_who_was_followed() -> None:
    answers = [
        {"reasoning": "a", "size": 1, "label": "red"},
        {"reasoning": "b", "size": 2, "label": "blue"},
        {"reasoning": "c", "size": 2, "label": "green"},
        {"reasoning": "d", "size": 3, "label": "blue"},
    ]
    assert joined("majority", Read, answers) == {"reasoning": "b", "size": 2, "label": "blue"}


def scored(red: float, green: float, blue: float) -> dict[str, Any]:
    chances = dict(zip(LABELS, (red, green, blue), strict=True))
    best = max(chances, key=lambda label: chances[label])
    return {"label": best, "probabilities": chances, "confidence": chances[best]}


def test_the_mean_may_take_what_no_member_did() -> None:
    found = joined("mean", Colour, [scored(0.5, 0.4, 0.1), scored(0.1, 0.4, 0.5), scored(0.45, 0.4, 0.15)])
    assert found["label"] == "green" and found["confidence"] == pytest.approx(0.4)
    assert sum(found["probabilities"].values()) == pytest.approx(1.0)


def reply(request: Any) -> str:
    """Each prompt sees the world in its own way."""
    number = int(request.messages[0].content.split("Prompt ")[1][0])
    return ("red", "blue", "blue")[number]


def test_all_are_asked_with_what_is_their_own_by_every_path(tmp_path: Path) -> None:
    connection = fake_connection(reply, tmp_path)
    program = together(three(), "majority")
    asked = [f"thing {number}" for number in range(8)]

    def one(text: str) -> str:
        with connection.context():
            return program(text=text).label

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, asked)) == {"blue"}
    requests = fake_engine(connection).requests
    assert len(requests) == 24 and connection.lm.meter.usage.lm_calls == 24
    assert {len(each.messages) for each in requests if "Prompt 1" in each.messages[0].content} == {4}
    assert {len(each.messages) for each in requests if "Prompt 1" not in each.messages[0].content} == {2}

    async def loop() -> list[Any]:
        with connection.context(connection.lm.copy(rollout_id=1, temperature=0.5)):
            return await asyncio.gather(*(program.acall(text=text) for text in asked))

    assert {each.label for each in asyncio.run(loop())} == {"blue"}
    assert len(requests) == 48


def test_label_probabilities_are_averaged(tmp_path: Path) -> None:
    def chances(request: Any) -> dict[str, float]:
        return {"red": 0.6, "green": 0.3, "blue": 0.1} if "0" in request.messages[0].content else {
            "red": 0.2, "green": 0.5, "blue": 0.3
        }  # fmt: skip

    connection = fake_connection(chances, tmp_path)
    members = three(labels={"label": plain_rule(LABELS).model_dump(mode="json")})
    assert rules(members) == ("mean", "majority") and rules(three()) == ("majority",)
    with connection.context():
        found = together(members, "mean")(text="x")
    assert found.label == "green"
    assert found.probabilities["green"] == pytest.approx((0.3 + 0.5 + 0.5) / 3, abs=1e-3)


def test_a_state_holds_the_members_and_loading_takes_them_whole() -> None:
    program = together(three(neighbors={"rows": "a" * 64, "of": 3, "count": 1, "tokens": 9}), "majority")
    loaded = fill(dspy.Predict(Colour), state_of(program))
    assert prompt_of(loaded) == prompt_of(program)
    assert [each["instructions"] for each in levers_of(loaded)["ensemble"]["members"]] == [
        "Prompt 0.", "Prompt 1.", "Prompt 2.",
    ]  # fmt: skip


@pytest.mark.parametrize("given_", ["three", {"rule": "mean", "members": []}, {"rule": "best", "members": [{}, {}]}])
def test_what_makes_no_sense_is_said(given_: Any) -> None:
    program = dspy.Predict(Colour)
    program.ensemble = given_  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ProgramError, match="`ensemble` makes no sense"):
        levers_of(program)
