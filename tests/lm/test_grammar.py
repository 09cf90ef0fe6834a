"""What the grammar of a signature promises: whatever it lets through, ChatAdapter parses, with the right types."""

from __future__ import annotations

import datetime
import enum
import random
import re
import typing
import uuid
from pathlib import Path
from typing import Any, Literal, Optional, Union

import dspy
import numpy as np
import pydantic
import pytest
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_toolkit.lm import grammar
from dspy_toolkit.lm.models.tokenizer import Tokenizer


class Color(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"
    TRUE = "True"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Auto(enum.Enum):
    FIRST = enum.auto()
    SECOND = enum.auto()


class Point(pydantic.BaseModel):
    x: int
    y: float | None = None
    type: Literal["a", "b"] = "a"  # a property that is called like a keyword


class Shape(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    points: list[Point]
    color: Color
    notes: dict[str, str] = {}


SCALARS: list[Any] = [str, int, float, bool, Color, Level, Auto, Literal["yes", "no"], Literal["1", "2 3", 'say "x"']]
SCALARS += [
    Literal[1, 2, 30],
    Literal[True, False],
    Literal["a", 1, None],
    Literal["null", "[]", "{"],
]
annotations = st.recursive(
    st.sampled_from([*SCALARS, Point, Shape, datetime.time, datetime.datetime, datetime.date, uuid.UUID]),
    lambda inner: st.one_of(
        inner.map(lambda a: Optional[a]),
        inner.map(lambda a: list[a]),
        inner.map(lambda a: dict[str, a]),
        st.tuples(inner, inner).map(lambda pair: Union[pair]),
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),
    ),
    max_leaves=3,
)
names = st.lists(st.sampled_from(["answer", "reasoning", "completed_at", "x", "label", "type"]), min_size=1, max_size=3)


def signature_of(fields: dict[str, Any]) -> type[dspy.Signature]:
    outputs = {name: (annotation, dspy.OutputField()) for name, annotation in fields.items()}
    return dspy.Signature({"question": (str, dspy.InputField()), **outputs}, "Answer.")


@pytest.fixture(scope="module")
def tokenizer(model_home: Path) -> Tokenizer:
    return Tokenizer(model_home / "models" / "smollm2-135m")


def say_anything(tokenizer: Tokenizer, text: str, seed: int, limit: int = 20_000) -> tuple[str, bool]:
    """Random tokens that the grammar `text` allows, and whether it came to its end."""
    draw = random.Random(seed)
    matcher = tokenizer.matcher(text)
    closers = [tokenizer._tokenizer.encode(character)[0] for character in '"]}']
    tokens: list[int] = []
    while not matcher.is_stopped() and len(tokens) < limit:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits)
        if len(tokens) > 100 and len(closing := allowed[np.isin(allowed, closers)]):
            allowed = closing  # time to come to an end
        token = int(draw.choice(allowed))
        assert matcher.consume_token(token), matcher.get_error()
        if token not in tokenizer.stop_tokens:
            tokens.append(token)
    assert not matcher.is_error(), matcher.get_error()
    return tokenizer.decode(tokens), matcher.is_stopped()


def same_type(annotation: Any, value: Any) -> bool:
    """Whether pydantic takes `value` as it is for `annotation`."""
    if isinstance(value, str) and grammar.is_text(annotation):
        return True
    return pydantic.TypeAdapter(annotation).validate_python(value, strict=True) == value


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.dictionaries(names.map(lambda n: n[0]), annotations, min_size=1, max_size=3), st.integers(0, 2**32))
def test_whatever_ends_parses(tokenizer: Tokenizer, fields: dict[str, Any], seed: int) -> None:
    signature = signature_of(fields)
    text = grammar.signature_grammar(signature)
    assert text is not None
    reply, ended = say_anything(tokenizer, text, seed)
    assert ended
    values = ChatAdapter().parse(signature, reply)
    assert list(values) == list(signature.output_fields)
    for name, value in values.items():
        assert same_type(signature.output_fields[name].annotation, value), (name, value)


@pytest.mark.parametrize("annotation", [Color, Level, Literal["yes", "no"], Literal[3, "x"], bool])
def test_every_choice_can_be_said(tokenizer: Tokenizer, annotation: Any) -> None:
    signature = signature_of({"pick": annotation})
    text = grammar.signature_grammar(signature)
    assert text is not None
    said = {ChatAdapter().parse(signature, say_anything(tokenizer, text, seed)[0])["pick"] for seed in range(40)}
    choices = (True, False) if annotation is bool else typing.get_args(annotation) or annotation
    assert said == set(choices)


def test_a_reply_that_is_cut_does_not_parse(tokenizer: Tokenizer) -> None:
    signature = signature_of({"shape": Shape})
    text = grammar.signature_grammar(signature)
    assert text is not None
    reply, ended = say_anything(tokenizer, text, 3, limit=12)
    assert not ended
    with pytest.raises(AdapterParseError):
        ChatAdapter().parse(signature, reply)


def test_headers_come_in_order(tokenizer: Tokenizer) -> None:
    text = grammar.signature_grammar(signature_of({"b": str, "a": int}))
    assert text is not None
    reply, _ = say_anything(tokenizer, text, 0)
    assert reply.startswith("[[ ## b ## ]]\n")
    assert reply.index("## b ##") < reply.index("## a ##") < reply.index("## completed ##")


@pytest.mark.parametrize(
    "annotation",
    [
        dspy.Image,
        list[dspy.Image],
        dspy.ToolCalls,
        Literal[" padded", "x"],
        Literal["two\nlines"],
        Literal[Color.RED],
        set[int],  # uniqueItems
        Path,  # a format of pydantic's own
        re.Pattern,
    ],
)
def test_no_grammar_where_none_can_describe_it(annotation: Any) -> None:
    assert grammar.signature_grammar(signature_of({"answer": annotation})) is None


def test_a_choice_that_looks_like_a_header() -> None:
    assert grammar.value_rule(Literal["x", "[[ ## x ## ]]"]) is None


@pytest.mark.parametrize("annotation", [str, int, float, bool, list[str], dict[str, int], Any, list[Any], dict, list])
def test_every_length_is_bounded(tokenizer: Tokenizer, annotation: Any) -> None:
    """A model that always prefers digits, letters or spaces still comes to an end."""
    text = grammar.signature_grammar(signature_of({"answer": annotation}))
    assert text is not None
    matcher = tokenizer.matcher(text)
    favourites = [token for token in range(300, 48000, 7) if tokenizer.decode([token]).strip().isalnum()]
    favourites += [token for character in "0123456789.-" for token in tokenizer._tokenizer.encode(character)]
    liked = np.zeros(60_000, dtype=bool)
    liked[favourites] = True
    draw, count = random.Random(0), 0
    while not matcher.is_stopped():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits)
        choices = allowed[liked[allowed]]
        matcher.consume_token(int(draw.choice(choices if len(choices) else allowed)))
        count += 1
        assert count < 30_000


def test_max_length_of_a_field(tokenizer: Tokenizer) -> None:
    class Short(dspy.Signature):
        question: str = dspy.InputField()
        answer: str = dspy.OutputField(max_length=5)

    text = grammar.signature_grammar(Short)
    assert text is not None
    for seed in range(10):
        reply, ended = say_anything(tokenizer, text, seed)
        assert ended
        assert 0 < len(ChatAdapter().parse(Short, reply)["answer"]) <= 5


def test_bounds_of_a_schema_are_kept() -> None:
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "maxLength": 3},
            "n": {"type": "integer", "minimum": 5},
            "r": {"type": "number", "exclusiveMaximum": -(10**20)},
            "list": {"type": "array", "items": {"type": "string"}, "minItems": 40},
            "kind": {"enum": ["a"], "type": "string"},
        },
        "required": ["type"],
    }
    limited = grammar.bounded(schema)
    properties = limited["properties"]
    assert properties["type"] == {"type": "string", "maxLength": 3}
    assert properties["n"] == {"type": "integer", "minimum": 5, "maximum": 10**15 - 1}
    assert properties["r"]["minimum"] < -(10**20)
    assert properties["list"]["maxItems"] == 40
    assert properties["list"]["items"]["maxLength"] == grammar.MAX_CHARACTERS
    assert properties["kind"] == schema["properties"]["kind"]
    assert limited["required"] == ["type"]
    assert "maxLength" not in str(schema["properties"]["list"])


def test_the_grammar_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = signature_of({"answer": list[str]})
    first = grammar.signature_grammar(signature)
    monkeypatch.setattr(grammar, "value_rule", None)
    assert grammar.signature_grammar(signature_of({"answer": list[str]})) is first
