"""A conversation from Python: turns with the plain model and with a program, and what a turn that failed leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.conversation import WithModel, WithProgram, open_conversation
from dspy_toolkit.errors import EngineFailed, SettingsError
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from tests.engines import own_engines


@pytest.fixture
def serve(home: Settings) -> Iterator[Callable[[Any], tuple[Settings, FakeEngine]]]:
    """Settings whose model gives these replies, and the model."""

    def made(replies: Any) -> tuple[Settings, FakeEngine]:
        engine = FakeEngine(replies)
        serve_engine(engine)
        return home.model_copy(update={"lm": home.lm.model_copy(update={"model": engine.model})}), engine

    with own_engines():
        yield made


def test_a_reply_grows_and_the_next_turn_is_told_of_it(serve: Callable[..., Any]) -> None:
    settings, engine = serve(["Good day.", "Ann, you said.", "Who are you?"])
    talk, pieces = open_conversation(settings, system="Be brief."), list[str]()
    assert isinstance(talk, WithModel) and talk.asks == ("",) and engine.model in talk.title
    assert talk.say({"": "I am Ann."}, pieces.append) == {"reply": "Good day."}
    assert len(pieces) > 1 and "".join(pieces) == "Good day."
    talk.say({"": "Who am I?"}, pieces.append)
    assert [message.content for message in engine.requests[1].messages] == [
        "Be brief.",
        "I am Ann.",
        "Good day.",
        "Who am I?",
    ]
    talk.forget()
    talk.say({"": "Hello"}, pieces.append)
    assert [message.content for message in engine.requests[2].messages] == ["Be brief.", "Hello"]


def test_a_turn_that_failed_is_as_if_it_had_not_been(serve: Callable[..., Any]) -> None:
    settings, engine = serve([EngineFailed("The GPU is gone."), "Good day."])
    talk = open_conversation(settings)
    with pytest.raises(Exception) as raised:
        talk.say({"": "Are you there?"}, lambda piece: None)
    assert isinstance(root_error(raised.value), EngineFailed)
    talk.say({"": "Hello"}, lambda piece: None)
    assert [message.content for message in engine.requests[-1].messages] == ["Hello"]


def test_a_program_answers_with_its_outputs(serve: Callable[..., Any], questions: Path) -> None:
    settings, engine = serve([{"label": "person"}])
    talk, pieces = open_conversation(settings, str(questions)), list[str]()
    assert isinstance(talk, WithProgram) and talk.title == f"questions on {engine.model}"
    assert talk.say({"": "Who wrote Emma?"}, pieces.append) == {"label": "person"}
    assert "".join(pieces) == "label: person"


def test_a_program_has_its_own_instructions(home: Settings, questions: Path) -> None:
    with pytest.raises(SettingsError, match="a program has its own instructions"):
        open_conversation(home, str(questions), system="Be brief.")
