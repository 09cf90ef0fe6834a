"""Running a program from the command line: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.cli.predict import print_rows, read_inputs
from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.predicting import Unreadable
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection


@pytest.fixture
def loaded(questions: Path, home: Settings) -> LoadedProgram:
    return load_program(home, str(questions))


def test_inputs_come_by_option_by_pair_and_by_json(typed: LoadedProgram) -> None:
    expected = {"user_name": "Ann=e", "age": 7, "tags": ["a"]}
    pairs = ("user_name=Ann=e", "age=7", 'tags=["a"]')
    assert read_inputs(typed, pairs, {}, None) == expected
    assert read_inputs(typed, (), {"user-name": "Ann=e", "age": "7", "tags": '["a"]'}, None) == expected
    assert read_inputs(typed, (), {}, '{"user_name": "Ann=e", "age": 7, "tags": ["a"]}') == expected
    assert read_inputs(typed, pairs[:1], {"age": "7"}, '{"tags": ["a"]}') == expected


def test_inputs_come_from_stdin(typed: LoadedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"user_name": "Anne", "age": "7", "tags": []}\n'))
    assert read_inputs(typed, (), {}, None) == {"user_name": "Anne", "age": 7, "tags": []}


@pytest.mark.parametrize(
    ("pairs", "options", "text", "message"),
    [
        ((), {"ages": "7"}, None, "has no input 'ages'. Did you mean age"),
        ((), {}, '{"user_name": "x"}', "needs the inputs age, tags"),
        (("age=7",), {"age": "8"}, None, "'age' is given twice"),
        (("age",), {}, None, "has no =. Write --input user_name=VALUE"),
        ((), {}, "[1]", "a JSON list. Write one object"),
        ((), {}, "{", "not JSON"),
        (("user_name=x", "age=old", "tags=[]"), {}, None, "The input age is 'old': Input should be a valid integer"),
    ],
)
def test_wrong_inputs_are_one_clear_error(
    typed: LoadedProgram, pairs: tuple[str, ...], options: dict[str, str], text: str | None, message: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        read_inputs(typed, pairs, options, text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rows_come_out_in_order_one_line_each(
    loaded: LoadedProgram, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(request: Any) -> dict[str, str]:
        return {"label": "number" if "How many" in request.messages[-1].content else "person"}

    rows = [{"text": f"How many {number}?"} if number % 2 else {"text": f"Who is {number}?"} for number in range(9)]
    print_rows(loaded, rows, fake_connection(reply, home), threads=4)
    lines = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["number" if number % 2 else "person" for number in range(9)]


def test_a_reply_that_cannot_be_read_has_its_line_too(
    loaded: LoadedProgram, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = fake_connection(["nonsense", {"label": "person"}], home, check_grammar=False)
    with pytest.raises(Unreadable, match="1 of 2 replies could not be read"):
        print_rows(loaded, [{"text": "a"}, {"text": "b"}], connection, threads=1)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "'nonsense'" in first["error"] and second == {"label": "person"}


def test_a_failing_engine_ends_it(loaded: LoadedProgram, home: Settings) -> None:
    connection = fake_connection([EngineFailed("The engine failed.")], home)
    with pytest.raises(Exception) as raised:
        print_rows(loaded, [{"text": "a"}, {"text": "b"}], connection, threads=1)
    assert isinstance(root_error(raised.value), EngineFailed)


def test_the_real_model_answers(command, home: Settings, save_questions, questions: Path, engine, model_home) -> None:
    shutil.copytree(model_home / "models", home.path("models"))
    save_questions("Be brief.")
    ended = command("predict", "questions@1", "--text", "Who wrote Hamlet?", "--json")
    assert ended.code == 0 and ended.err == ""
    assert json.loads(ended.out)["label"] in ("number", "person")
    table = command("predict", str(questions), "--input", "text=Who wrote Hamlet?")
    assert table.code == 0 and table.out.split()[0] == "label"
    assert "Nothing of questions is promoted yet" in table.err
    rows = questions.with_name("rows.csv")
    rows.write_text("text\nWho wrote Hamlet?\nHow many days has a week?\n")
    many = command("predict", "questions@1", "--file", str(rows))
    assert many.code == 0
    assert all(json.loads(line)["label"] in ("number", "person") for line in many.out.splitlines())


def test_a_model_that_does_not_exist_is_one_line(command, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", "mlx/no-such-model")
    ended = command("predict", str(questions), "--text", "x")
    assert ended.code == 1 and ended.out == ""
    assert ended.err.splitlines()[-1].startswith("Error: No model 'no-such-model'")
