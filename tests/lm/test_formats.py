"""What holds for every format: a reply that its grammar lets through is read back as what was said, whole and piece by piece."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.adapter import FORMATS
from dspy_toolkit.lm.formats import format_of
from dspy_toolkit.lm.formats.base import Format
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.testing import fake_connection, fake_engine


class Color(enum.Enum):
    RED = "red"
    BLUE = "light blue"


class Box(BaseModel):
    width: int
    tags: list[str]


class Route(dspy.Signature):
    """Route it."""

    request: str = dspy.InputField()
    project: Literal["lora", "clip"] = dspy.OutputField()


class Read(dspy.Signature):
    """Read the mail."""

    mail: str = dspy.InputField(desc="as it came")
    language: str = dspy.InputField()
    note: str = dspy.OutputField(desc="what it is about")
    number: int = dspy.OutputField()
    sure: bool = dspy.OutputField()
    color: Color = dspy.OutputField()


class Pack(dspy.Signature):
    """Pack it."""

    order: str = dspy.InputField()
    box: Box = dspy.OutputField()
    labels: list[str] = dspy.OutputField()


VALUES: dict[type[dspy.Signature], dict[str, Any]] = {
    Route: {"project": "clip"},
    Read: {"note": "two\nlines", "number": -3, "sure": True, "color": Color.BLUE},
    Pack: {"box": Box(width=1, tags=["x", "é"]), "labels": ["a", "b c"]},
}
CASES = [(name, signature) for name in FORMATS for signature in VALUES if (name, signature) != ("xml", Pack)]


@pytest.mark.parametrize(("name", "signature"), CASES)
def test_the_grammar_lets_through_what_a_demonstration_shows_and_it_is_read_back(
    name: Any, signature: type[dspy.Signature]
) -> None:
    made, values = FORMATS[name](), VALUES[signature]
    reply = made.format_assistant_message_content(signature, values)
    assert made.parse(signature, reply) == values
    if (name, signature) != ("chat", Pack):  # DSPy shows lists with spaces there
        assert accepted(made, signature, reply.rstrip("\n"))


@pytest.mark.parametrize(("name", "signature"), [case for case in CASES if case[0] != "chat"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_reply_that_grows_gives_the_same_fields(name: Any, signature: type[dspy.Signature], size: int) -> None:
    made, values = FORMATS[name](), VALUES[signature]
    reply = made.format_assistant_message_content(signature, values)
    assert read(made, signature, reply, size) == {
        field: said(value, as_json=name == "json") for field, value in values.items()
    }


@given(
    note=st.text(min_size=1, max_size=40).filter(lambda text: text == text.strip() and text.isprintable()),
    size=st.integers(1, 9),
)
@pytest.mark.parametrize("name", ["plain", "json", "xml"])
def test_any_printable_text_comes_through(name: Any, note: str, size: int) -> None:
    made, values = FORMATS[name](), {**VALUES[Read], "note": note}
    reply = made.format_assistant_message_content(Read, values)
    if name == "json" or accepted(made, Read, reply):
        assert made.parse(Read, reply) == values
        assert read(made, Read, reply, size)["note"] == note


def test_the_plain_format_says_nothing_superfluous() -> None:
    made = FORMATS["plain"]()
    demos = [{"request": "tune", "project": "lora"}]
    assert made.format(Route, demos, {"request": "embed"}) == [
        {"role": "system", "content": "Route it.\n\nReply with one of: lora, clip."},
        {"role": "user", "content": "tune"},
        {"role": "assistant", "content": "lora"},
        {"role": "user", "content": "embed"},
    ]


def test_an_empty_input_is_still_a_turn() -> None:
    assert FORMATS["plain"]().format(Route, [], {"request": " "})[-1] == {"role": "user", "content": "request:"}


def test_lists_have_no_grammar_in_xml() -> None:
    assert FORMATS["xml"].grammar(Pack) is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_predictor_runs_in_its_format(name: Any, way: str, tmp_path: Path) -> None:
    values = VALUES[Read]
    reply = FORMATS[name]().format_assistant_message_content(Read, values).rstrip("\n")
    connection = fake_connection([reply], tmp_path)
    program = dspy.Predict(Read)
    pull(program, format=name)
    with connection.context():
        call = {"mail": "Hello", "language": "en"}
        found = program(**call) if way == "sync" else asyncio.run(program.acall(**call))
    assert found.toDict() == values
    (request,) = fake_engine(connection).requests
    assert request.grammar == FORMATS[name].grammar(Read)


@pytest.mark.parametrize("name", FORMATS)
def test_dspys_listeners_hear_every_format(name: Any, tmp_path: Path) -> None:
    values = VALUES[Read]
    reply = FORMATS[name]().format_assistant_message_content(Read, values).rstrip("\n")
    connection = fake_connection([reply], tmp_path)
    program = dspy.Predict(Read)
    pull(program, format=name)
    streaming = dspy.streamify(
        program,
        stream_listeners=[dspy.streaming.StreamListener(field) for field in ("note", "color")],
        async_streaming=False,
    )
    heard: dict[str, str] = {}
    last: Any = None
    with connection.context():
        for item in streaming(mail="Hello", language="en"):
            if isinstance(item, dspy.streaming.StreamResponse):
                heard[item.signature_field_name] = heard.get(item.signature_field_name, "") + item.chunk
            else:
                last = item
    assert heard == {"note": "two\nlines", "color": "light blue"}
    assert last.toDict() == values


def test_a_format_is_part_of_the_state_and_of_the_prompt() -> None:
    plain, other = dspy.Predict(Route), dspy.Predict(Route)
    pull(plain, format="plain")
    assert prompt_of(plain) != prompt_of(other)
    assert "format" not in state_of(other)
    assert format_of(fill(other.deepcopy(), state_of(plain))) == "plain"
    assert format_of(fill(plain.deepcopy(), state_of(other))) is None
    assert format_of(plain.deepcopy()) == format_of(plain.reset_copy()) == "plain"
    inner = dspy.ChainOfThought(Route)
    pull(inner.predict, format="xml")
    assert format_of(fill(dspy.ChainOfThought(Route), state_of(inner)).predict) == "xml"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_format_that_nobody_knows_is_one_clear_error(tmp_path: Path) -> None:
    program = dspy.Predict(Route)
    program.format = "plane"  # pyright: ignore[reportAttributeAccessIssue]
    with fake_connection([], tmp_path).context(), pytest.raises(ProgramError, match=r"'plane'.*plain"):
        program(request="x")


def accepted(made: Format, signature: type[dspy.Signature], reply: str) -> bool:
    grammar = made.grammar(signature)
    assert grammar is not None
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    data = list(reply.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def read(made: Format, signature: type[dspy.Signature], reply: str, size: int) -> dict[str, str]:
    """The fields as a reader gives them, from pieces of `size` characters."""
    reader = made.reader(signature)
    assert reader is not None

    def pairs() -> Iterator[tuple[str, str]]:
        for start in range(0, len(reply), size):
            yield from reader.feed(reply[start : start + size])
        yield from reader.end()

    found: dict[str, str] = {}
    for name, text in pairs():
        found[name] = found.get(name, "") + text
    return found


def said(value: Any, *, as_json: bool) -> str:
    import json

    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, separators=None if as_json else (",", ":"))
    return json.dumps(value) if as_json and not isinstance(value, str) else str(value)
