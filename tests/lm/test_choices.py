"""The choices of an annotation: the texts are those that the grammar writes, and DSPy reads them back as the values."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal, Optional

import dspy
import pytest
from dspy.adapters.utils import parse_value
from llguidance import LLMatcher, LLTokenizer

from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.grammar import value_rule


class Desk(enum.Enum):
    BILLING = "billing desk"
    RETURNS = "returns"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Place(enum.Enum):
    HERE = Path("/")


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [
        (bool, ["True", "False"]),
        (Literal["billing", "billing dispute"], ["billing", "billing dispute"]),
        (Literal[3, 1, -2], ["3", "1", "-2"]),
        (Literal["yes", None, True], ["yes", "None", "True"]),
        (Desk, ["billing desk", "returns"]),
        (Level, ["LOW", "HIGH"]),
        (Optional[Literal["é", "b"]], ['"é"', '"b"', "null"]),
        (bool | None, ["true", "false", "null"]),
        (Optional[Desk], ['"billing desk"', '"returns"', "null"]),
        (Level | None, ["1", "2", "null"]),
        (Literal["a"] | Literal["a", "b"], ['"a"', '"b"']),
    ],
)
def test_texts_and_values(annotation: Any, texts: list[str]) -> None:
    choices = choices_of(annotation)
    assert choices is not None and [text for text, _ in choices] == texts
    for text, value in choices:
        assert parse_value(text, annotation) == value
        matcher = LLMatcher(LLTokenizer("byte"), f"start: {value_rule(annotation)}", log_level=0)
        assert matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


@pytest.mark.parametrize(
    "annotation",
    [
        str, int, float, None, Any, Optional[str], Optional[int], list[Literal["a"]], dspy.Image, Optional[dspy.Image], Path,
        Literal["1", 1], Literal[" padded", "x"], Literal["two\nlines"], Literal["", "x"], Literal["x", "[[ ## x ## ]]"],
        Optional[Place], Optional[Literal["1", 1]] | Level,
    ],
)  # fmt: skip
def test_no_choice(annotation: Any) -> None:
    assert choices_of(annotation) is None
