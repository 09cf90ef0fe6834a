"""DSPy's own adapters on the embedded model: JSON, XML, BAML and two steps, each through one program."""

from __future__ import annotations

from typing import Any, Literal

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.adapters.two_step_adapter import TwoStepAdapter

from dspy_toolkit.lm import Connection

LABEL = '("positive" | "negative")'
XML = f'start: "<mood>\\n" {LABEL} "\\n</mood>"'
CHAT = f'start: "[[ ## mood ## ]]\\n" {LABEL} "\\n\\n[[ ## completed ## ]]"'


class Mood(dspy.Signature):
    """The mood of a review."""

    review: str = dspy.InputField()
    mood: Literal["positive", "negative"] = dspy.OutputField()


def two_steps(connection: Connection) -> dspy.Adapter:
    """The first step writes freely; what reads it is held to its format."""
    return TwoStepAdapter(dspy.LM(connection.model, engine="litellm", cache=False, max_tokens=30, guided_grammar=CHAT))


ADAPTERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "JSON": (lambda _: dspy.JSONAdapter(), {}),  # sends the schema by itself
    "BAML": (lambda _: BAMLAdapter(), {}),
    "XML": (lambda _: dspy.XMLAdapter(), {"guided_grammar": XML}),
    "two steps": (two_steps, {"max_tokens": 12}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_dspys(connection: Connection, name: str) -> None:
    make, options = ADAPTERS[name]
    lm = dspy.LM(connection.model, engine="litellm", cache=False, num_retries=0, **{"max_tokens": 40, **options})
    with dspy.context(lm=lm, adapter=make(connection)):
        assert dspy.Predict(Mood)(review="I love it.").mood in ("positive", "negative")
    assert len(lm.history) == 1, "the first reply could be read"
