"""Talking with the plain model and with programs: through a pipe here, at a terminal in a process of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import EngineFailed
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.testing import FakeEngine
from tests.engines import own_engines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def talk(command, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Run `chat` on a fake model with lines on stdin; (how it ended, the fake)."""

    def run(replies: Any, lines: str, *arguments: str, **options: Any) -> Any:
        engine = FakeEngine(replies, **options)
        serve_engine(engine)
        monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", engine.model)
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return command("chat", *arguments), engine

    with own_engines():
        yield run


def test_each_line_is_a_turn_and_the_model_is_told_what_was_said(talk: Callable[..., Any]) -> None:
    ended, engine = talk(["Good day.", "Ann, you said."], "I am Ann.\n\nWho am I?\n", "--system", "Be brief.")
    assert (ended.code, ended.out, ended.err) == (0, "Good day.\nAnn, you said.\n", "")
    assert [(message.role, message.content) for message in engine.requests[1].messages] == [
        ("system", "Be brief."),
        ("user", "I am Ann."),
        ("assistant", "Good day."),
        ("user", "Who am I?"),
    ]


def test_replies_as_json_for_scripts(talk: Callable[..., Any]) -> None:
    ended, _ = talk(["Good\nday.", "Ann."], "I am Ann.\nWho am I?\n", "--json")
    assert [json.loads(line) for line in ended.out.splitlines()] == [{"reply": "Good\nday."}, {"reply": "Ann."}]


def test_what_no_longer_fits_is_forgotten_and_said(talk: Callable[..., Any]) -> None:
    long = "word " * 60
    ended, engine = talk(["one", "two", "three"], f"{long}\n{long}\n{long}\n", context_size=400)
    assert (ended.code, ended.out) == (0, "one\ntwo\nthree\n")
    assert "The oldest turn is forgotten: the model has no room for more." in ended.err
    assert len(engine.requests[-1].messages) < 5
    alone, _ = talk(["never"], "word " * 500 + "\n", context_size=400)
    assert alone.code == 1 and alone.err.startswith("Error: ") and alone.err.count("\n") == 1


def test_a_model_that_fails_ends_it_with_one_line(talk: Callable[..., Any]) -> None:
    ended, _ = talk([EngineFailed("The GPU is gone. Run it again.")], "Hello\n")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "Error: The GPU is gone. Run it again.\n"


def test_a_reply_obeys_no_terminal(talk: Callable[..., Any]) -> None:
    ended, _ = talk(["red \x1b[31m"], "Hello\n")
    assert ended.out == "red \\x1b[31m\n"


def test_a_program_is_run_turn_by_turn(talk: Callable[..., Any], questions: Path) -> None:
    ended, engine = talk([{"label": "person"}, {"label": "number"}], "Who?\nHow many?\n", str(questions))
    assert (ended.code, ended.out) == (0, "label: person\nlabel: number\n")
    assert len(engine.requests) == 2
    refused, _ = talk([], "Who?\n", str(questions), "--system", "Be brief.")
    assert refused.code == 1 and "a program has its own instructions" in refused.err


SEVERAL = """
from pathlib import Path
import dspy
from dspy_toolkit import DatasetSpec, Project, exact_match

class Ask(dspy.Signature):
    "Answer."
    history: dspy.History = dspy.InputField()
    question: str = dspy.InputField()
    words: int = dspy.InputField()
    thought: str = dspy.OutputField()
    answer: str = dspy.OutputField()

spec = DatasetSpec(source="rows.csv", inputs=("question", "words"), outputs=("answer",))
project = Project(name="ask", summary="Ask", program=lambda: dspy.Predict(Ask), metric=exact_match, dataset=spec)
"""


def test_several_inputs_are_an_object_and_the_history_is_given(talk: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(SEVERAL)
    lines = [{"question": "Who?", "words": 1}, {"question": "Why?", "words": "two"}, {"question": "Why?", "words": "2"}]
    given = "".join(json.dumps(line) + "\n" for line in lines) + "no object\n"
    replies = [{"thought": "Hm.", "answer": "Ann"}, {"thought": "So.", "answer": "It is"}]
    ended, engine = talk(replies, given, str(tmp_path / "ask.py"))
    assert ended.out == "thought: Hm.\nanswer: Ann\nthought: So.\nanswer: It is\n"
    assert ended.code == 1
    assert "The input words is 'two'" in ended.err and "no JSON object of question, words" in ended.err
    assert "Ann" in "".join(message.content for message in engine.requests[1].messages)
    assert dspy.History is not None


AT_TERMINAL = """
import sys
from dspy_toolkit.cli import main
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.testing import FakeEngine

def reply(request):
    said = request.messages[-1].content
    return "word " * 400 if said == "long" else f"{len(request.messages)} messages"

serve_engine(FakeEngine(reply, model="mlx/fake", seconds_per_token=0.02))
main(["chat"])
"""


def test_at_a_terminal_ctrl_c_stops_a_reply_and_ctrl_d_ends(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_TERMINAL], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DSPY_TOOLKIT_HOME": str(tmp_path), "DSPY_TOOLKIT_LM__MODEL": "mlx/fake"},
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        began = time.monotonic()
        while words not in seen:
            assert time.monotonic() - began < 120, seen
            seen += os.read(ours, 4096).decode()
        seen = seen.partition(words)[2]

    try:
        until("you> ")
        os.write(ours, b"hello\n")
        until("1 messages")
        until("you> ")
        os.write(ours, b"long\n")
        until("word word")
        process.send_signal(signal.SIGINT)
        until("(stopped; as if it had not been said)")
        until("you> ")
        os.write(ours, b"again\n")
        until("3 messages")  # the stopped turn is not among them
        until("you> ")
        os.write(ours, b"/new\n")
        until("you> ")
        os.write(ours, b"hello\n")
        until("1 messages")
        until("you> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
