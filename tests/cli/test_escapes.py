"""Escapes in names, rows, replies and errors are written out, whatever command shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.registry import promote
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from tests.cli.conftest import Command
from tests.test_printable import HOSTILE, has_controls

SEEN = r"\x1b[2Jred\x9b31m"
"""A part of `HOSTILE` as it is shown."""


def test_a_saved_program(command: Command, home: Settings, save_questions: Callable[..., int]) -> None:
    promote(home, "questions", save_questions(f"Do {HOSTILE}.", optimizer_settings={"note": HOSTILE}, metric=HOSTILE))
    for arguments in (["list"], ["list", "questions"], ["show", "questions@1"], ["show", "questions@1", "--json"]):
        ended = command("programs", *arguments)
        assert ended.code == 0
        assert not has_controls(ended.out + ended.err)
    assert r"\u001b[2Jred\u009b31m" in ended.out
    assert SEEN in command("programs", "show", "questions@1").out.replace("\n", "")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reply(command: Command, questions: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]) -> None:
    text = questions.read_text().replace('Literal["number", "person"]', "str")
    questions.write_text(text)
    engine = FakeEngine(lambda request: {"label": f"a {HOSTILE}"})
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", engine.model)
    serve_engine(engine)
    ended = command("predict", str(questions), "--text", HOSTILE, *form)
    engine.close()
    assert ended.code == 0, ended.err
    assert not has_controls(ended.out + ended.err)
    assert "red" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", HOSTILE],
        ["predict", f"{HOSTILE}.toml"],
        ["predict", "router", "--input", f"{HOSTILE}=1"],
        ["predict", "router", "--file", f"{HOSTILE}.csv"],
        ["programs", "show", f"{HOSTILE}@1"],
        ["programs", HOSTILE],
        ["history", "--project", HOSTILE],
    ],
)
def test_an_error(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments)
    assert not has_controls(ended.out + ended.err)
    assert "red" in ended.out + ended.err


def test_a_column(command: Command, tmp_path: Path, questions: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"text\x1b[2J\n1\n")
    ended = command("predict", str(questions), "--file", str(rows))
    assert ended.code == 1
    assert r"Did you mean text\x1b[2J?" in ended.err
    assert not has_controls(ended.err)
