"""Values as text: nothing that a page cannot hold, and numbers as people write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.gate.verdict import percent_of_level
from dspy_toolkit.report.words import (
    LONGEST,
    Field,
    count,
    duration,
    fields_in,
    percent,
    points,
    readable,
    shown,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\nover two lines", "as it is\nover two lines"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ({"a": 1}, '{"a": 1}'),
        ([], "[]"),
        ("naïve 日本 👩‍👩‍👧 \u202eright to left", "naïve 日本 👩‍👩‍👧 \u202eright to left"),
        ("a\r\nb\0c\x1bd\ud800", "a\nb\ufffdc\ufffdd\ufffd"),
    ],
)
def test_values_are_shown_as_text(value: Any, text: str) -> None:
    assert shown(value) == text


def test_what_is_long_is_indented_and_what_is_longer_still_is_cut() -> None:
    assert shown(["x" * 50, "y" * 50]) == json.dumps(["x" * 50, "y" * 50], indent=2)
    cut = shown("z" * (LONGEST + 5))
    assert cut.startswith("z" * LONGEST + "… (the first 20,000 of 20,005 characters)")
    assert len(cut) < LONGEST + 60


@given(JSON)
def test_any_json_can_be_written_as_utf_8(value: Any) -> None:
    fields = fields_in(json.dumps(value))
    for field in (*fields, Field("", shown(value))):
        assert not {chr(code) for code in (*range(9), *range(11, 32))} & {*field.name, *field.text}
        field.text.encode("utf-8")


@given(st.text())
def test_reading_twice_changes_nothing(text: str) -> None:
    assert readable(readable(text)) == readable(text)


def test_the_fields_of_an_answer() -> None:
    assert fields_in('{"label": "red", "sure": false}') == (Field("label", "red"), Field("sure", "false"))
    assert fields_in("null") == ()
    assert fields_in('"red"') == (Field("", "red"),)
    assert fields_in("{broken") == (Field("", "{broken"),)
    assert fields_in("[" * 100_000)[0].name == ""


def test_numbers() -> None:
    assert (percent(0.317), percent(1.0), percent(0.0)) == ("31.7 %", "100.0 %", "0.0 %")
    assert (points(0.025), points(-0.1), points(0.0)) == ("+2.5", "−10.0", "+0.0")
    assert (count(1234), count(1.5), count(2.0), count(0)) == ("1,234", "1.5", "2", "0")
    assert (percent_of_level(0.975), percent_of_level(0.99994)) == ("97.5 %", "99.99 %")
    assert [duration(s) for s in (0.04, 12.4, 59.7, 200, 7499)] == [
        "0.0 s",
        "12 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
