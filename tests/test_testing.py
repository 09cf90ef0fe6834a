"""The fake that projects' own tests use; the engines' contract is tested in tests/lm."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest

from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.protocol import make_request
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine, OutOfAnswers, fake_connection, fake_engine, format_reply


class Point(pydantic.BaseModel):
    x: int
    label: str | None


class Size(enum.Enum):
    BIG = "big"


class Everything(dspy.Signature):
    question: str = dspy.InputField()
    text: str = dspy.OutputField()
    flag: bool = dspy.OutputField()
    number: float = dspy.OutputField()
    choice: Literal["a b", "c"] = dspy.OutputField()
    size: Size = dspy.OutputField()
    points: list[Point] = dspy.OutputField()


def test_fields_are_written_as_the_grammar_wants_them(tmp_path: Path) -> None:
    fields = {
        "text": "two\nlines",
        "flag": True,
        "number": 1.5,
        "choice": "a b",
        "size": "big",
        "points": [{"x": 1, "label": None}, {"x": -2, "label": "é"}],
    }
    connection = fake_connection([fields], Settings(home=tmp_path))
    with connection.context():
        result = dspy.Predict(Everything)(question="?")
    assert result.text == "two\nlines"
    assert result.flag is True
    assert (result.number, result.choice, result.size) == (1.5, "a b", Size.BIG)
    assert result.points == [Point(x=1, label=None), Point(x=-2, label="é")]


def test_a_script_says_only_what_the_grammar_allows(tmp_path: Path) -> None:
    program = dspy.Predict("question -> label: Literal['yes', 'no']")
    connection = fake_connection([{"label": "maybe"}, {"label": "yes"}], tmp_path)
    with connection.context():
        with pytest.raises(Exception, match="does not fit the grammar after .*label"):
            program(question="first")
        assert program(question="second").label == "yes"


def test_a_function_of_the_request(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: {"word": request.messages[-1].content.split()[-1]}, tmp_path)
    program = dspy.Predict("question -> word")
    with connection.context():
        assert [program(question=word).word for word in ("red", "blue")] == ["red", "blue"]
    assert [request.messages[0].role for request in fake_engine(connection).requests] == ["system", "system"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"yes": 0.75, "no": 0.25}, [0.75, 0.25, 0]),
        ({"no": 1}, [0, 1, 0]),
        ({"yes": -1.5, "no": -0.25, "maybe": -9}, [math.exp(-1.5), math.exp(-0.25), math.exp(-9)]),
        ("no", [5e-7, 1 - 1e-6, 5e-7]),
        ("[[ ## label ## ]]\nno\n\n[[ ## completed ## ]]", [5e-7, 1 - 1e-6, 5e-7]),
        ({"label": "no"}, [5e-7, 1 - 1e-6, 5e-7]),
        ({"yes": 0.5, "nay": 0.5}, "scores none of the labels"),
        ({"yes": 0.5, "no": -1}, [0.5, 0, 0]),
        ({"yes": 2.0}, "scores none of the labels"),
        ("perhaps", "scores none of the labels"),
        (RuntimeError("on fire"), "on fire"),
    ],
)
def test_scripts_for_labels(said: Any, expected: Any) -> None:
    engine = FakeEngine([said])
    labels = {"prefix": "[[ ## label ## ]]\n", "labels": ("yes", "no", "maybe"), "suffix": "\n\n[[ ## completed ## ]]"}
    pending = engine.submit(make_request(messages=[{"role": "user", "content": "?"}], label_scores=labels))
    if isinstance(expected, str):
        with pytest.raises(Exception, match=expected):
            pending.result(10)
    else:
        scored = pending.result(10).label_logprobs or ()
        assert [math.exp(each.logprob) for each in scored] == pytest.approx(expected)
    engine.close()


def test_two_fakes_share_no_cached_reply(tmp_path: Path) -> None:
    first, second = (fake_connection([text], tmp_path) for text in ("one", "two"))
    assert (first.lm("x"), second.lm("x"), first.lm("x")) == (["one"], ["two"], ["one"])
    with pytest.raises(Exception, match="Script another reply") as caught:
        first.lm("y")
    assert isinstance(root_error(caught.value), OutOfAnswers)


def test_format_reply() -> None:
    assert format_reply({"a": "x", "b": [1, None]}) == (
        "[[ ## a ## ]]\nx\n\n[[ ## b ## ]]\n[1,null]\n\n[[ ## completed ## ]]"
    )
