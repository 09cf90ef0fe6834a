"""What may be shown: every control character is written out, every password is masked, JSON stays JSON."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.display.tables import console, listing, properties
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.printable import PrintableRecord, hide, json_text, printable, without_password

HOSTILE = "\x1b]0;owned\x07\x1b[2Jred\x9b31m\r\x08\x7f"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jred\x9b31m\x0d\x08\x7f"


def has_controls(text: str) -> bool:
    return any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in text)


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = printable(text)
    assert not has_controls(shown)
    assert shown == text or has_controls(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda kind: st.lists(kind) | st.dictionaries(st.text(), kind),
    )
)
def test_json_for_a_terminal_is_the_same_json(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not has_controls(text)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("at http://:secret@host:5000, and https://a:b@c", "at http://:***@host:5000, and https://a:***@c"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("https://host/v1?api_key=secret", "https://host/v1?api_key=***"),
        ("sqlite:////home/me:there/x@y.db", "sqlite:////home/me:there/x@y.db"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    ],
)
def test_passwords_of_addresses(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_an_error_of_the_toolkit_says_neither() -> None:
    error = DatasetError(f"column {HOSTILE} of postgresql://me:secret@host/db")
    assert str(error) == f"column {SHOWN} of postgresql://me:***@host/db"


def test_whatever_goes_through_the_console_is_clean() -> None:
    file = io.StringIO()
    screen = console(file=file, width=200)
    for thing in (
        HOSTILE,
        properties([(HOSTILE, HOSTILE)], title=HOSTILE),
        listing([HOSTILE], [[HOSTILE]], title=HOSTILE),
    ):
        screen.print(thing)
    assert not has_controls(file.getvalue())
    assert file.getvalue().count(r"\x1b[2Jred\x9b31m") == 6


def test_the_consoles_own_colours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    console(file=file).print("[bold]bold[/] " + HOSTILE)
    assert file.getvalue().startswith("\x1b[1mbold\x1b[0m ")
    assert r"\x1b[2Jred\x9b31m" in file.getvalue()


def test_what_is_logged_is_clean() -> None:
    record = PrintableRecord("dspy", logging.INFO, "x.py", 1, "a value: %s", (HOSTILE,), None)
    assert logging.Formatter("%(message)s").format(record) == f"a value: {SHOWN}"


def test_a_hidden_secret_is_in_nobodys_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.setLogRecordFactory(logging.LogRecord)
    hide("sk-in-nobodys-log")
    logging.getLogger("another.package").warning("headers: %s", {"Authorization": "Bearer sk-in-nobodys-log"})
    assert caplog.messages == ["headers: {'Authorization': 'Bearer ***'}"]


def test_records_that_a_program_makes_in_its_own_way_stay_its_own() -> None:
    class Own(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Own)
    hide("sk-another-secret")
    assert logging.getLogRecordFactory() is Own
