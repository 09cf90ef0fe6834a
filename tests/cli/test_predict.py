"""Running a program from the command line: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.cli.predict import Unreadable, print_rows, read_file, read_inputs, run
from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.label_rules import plain_rule
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection

TYPED = """
name = "typed"
signature = 'user_name: str, age: int, tags: list[str] -> fit: bool, notes: list[str]'
metric = "exact_match"
[dataset]
source = "typed.csv"
inputs = ["user_name", "age", "tags"]
outputs = ["fit"]
"""


@pytest.fixture
def typed(tmp_path: Path, home: Settings) -> LoadedProgram:
    path = tmp_path / "typed.toml"
    path.write_text(TYPED)
    return load_program(home, str(path))


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


def test_every_bad_row_of_a_file_is_listed_and_other_columns_are_left_out(typed: LoadedProgram, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good: dict[str, Any] = {"user_name": "Anne", "age": 7, "tags": ["a"], "fit": True}
    path.write_text("\n".join(json.dumps(row) for row in (good, good)))
    assert read_file(path, typed) == [{"user_name": "Anne", "age": 7, "tags": ["a"]}] * 2
    path.write_text("\n".join(json.dumps(row) for row in (good, {**good, "age": "old"}, {**good, "tags": 3})))
    with pytest.raises(DatasetError) as raised:
        read_file(path, typed)
    assert "row 2: age" in str(raised.value) and "row 3: tags" in str(raised.value)


def test_an_answer_is_plain_values(typed: LoadedProgram, home: Settings) -> None:
    connection = fake_connection([{"fit": True, "notes": ["x", "y"]}], home)
    answer = run(typed, {"user_name": "Anne", "age": 7, "tags": []}, connection)
    assert answer == {"fit": True, "notes": ["x", "y"]}


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


def test_an_unsure_answer_is_marked_where_the_project_asks_for_it(questions: Path, home: Settings) -> None:
    questions.write_text("abstain_below = 0.75\n" + questions.read_text())
    loaded = load_program(home, str(questions))
    (predictor,) = loaded.program.predictors()
    (name, field), *_ = predictor.signature.output_fields.items()
    labels = [text for text, _ in choices_of(field.annotation) or ()]
    pull(predictor, labels={name: plain_rule(labels).model_dump(mode="json")})

    def reply(request: Any) -> Any:
        likely = 0.9 if "sure" in request.messages[-1].content else 0.5
        rest = (1 - likely) / (len(labels) - 1)
        return {label: likely if label == labels[0] else rest for label in labels}

    connection = fake_connection(reply, home)
    sure, unsure = (run(loaded, {"text": text}, connection) for text in ("sure", "perhaps"))
    assert (sure["abstained"], unsure["abstained"]) == (False, True)
    assert sure[name] == unsure[name], "the answer is there all the same"
    always = loaded._replace(project=replace(loaded.project, abstain_below=None))
    assert "abstained" not in run(always, {"text": "perhaps"}, connection)
