"""Two saved states side by side."""

from __future__ import annotations

from typing import Any

from dspy_toolkit.report.prompts import predictors
from dspy_toolkit.report.words import Field


def state(instructions: str = "Classify.", demos: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"signature": {"instructions": instructions, "fields": []}, "demos": demos or [], "lm": None}


DEMO = {"augmented": True, "dspy_uuid": "1", "dspy_split": "train", "label": "red", "text": "a tomato", "why": None}


def test_one_predictor_has_no_name_and_its_demonstrations_are_in_the_signatures_order() -> None:
    (found,) = predictors(state(), state("Say.", [DEMO, {"label": "blue", "text": "sky"}]), {"": ("text", "label")})
    assert (found.name, found.same) == ("", False)
    assert found.before is not None
    assert (found.before.instructions, found.before.demonstrations) == ("Classify.", ())
    first, second = found.after.demonstrations
    assert first.fields == (Field("text", "a tomato"), Field("label", "red"), Field("why", "null"))
    assert (first.by_model, second.by_model) == (True, False)


def test_predictors_are_told_apart_and_what_did_not_change_is_the_same() -> None:
    before = {"first": state(), "second": state(), "metadata": {}}
    after = {"first": state(), "second": state("Say."), "metadata": {}}
    first, second = predictors(before, after, {})
    assert (first.name, first.same) == ("first", True)
    assert (second.name, second.same) == ("second", False)


def test_without_a_program_before_there_is_one_side() -> None:
    (found,) = predictors(None, state(), {})
    assert (found.before, found.same) == (None, False)
