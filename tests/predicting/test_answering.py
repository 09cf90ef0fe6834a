"""A program's answers: inputs of its types, plain values out, in the order of the rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.label_rules import plain_rule
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.predicting import Unreadable, answer, answers, fit, input_types, read_file
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection


def test_inputs_are_fitted_to_the_types_of_the_program(typed: LoadedProgram) -> None:
    types = input_types(typed)
    assert types == {"user_name": str, "age": int, "tags": list[str]}
    assert (fit("age", "7", types["age"]), fit("tags", '["a"]', types["tags"])) == (7, ["a"])
    with pytest.raises(DatasetError, match="The input age is 'old': Input should be a valid integer"):
        fit("age", "old", types["age"])


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
    said = answer(typed, {"user_name": "Anne", "age": 7, "tags": []}, connection)
    assert said == {"fit": True, "notes": ["x", "y"]}


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
    sure, unsure = (answer(loaded, {"text": text}, connection) for text in ("sure", "perhaps"))
    assert (sure["abstained"], unsure["abstained"]) == (False, True)
    assert sure[name] == unsure[name], "the answer is there all the same"
    always = loaded._replace(project=replace(loaded.project, abstain_below=None))
    assert "abstained" not in answer(always, {"text": "perhaps"}, connection)


def test_many_answers_come_in_order_and_one_that_cannot_be_read_is_among_them(questions: Path, home: Settings) -> None:
    loaded = load_program(home, str(questions))

    def reply(request: Any) -> Any:
        number = int(request.messages[-1].content.partition("thing ")[2].split()[0])
        return "nonsense" if number == 4 else {"label": "number" if number % 2 else "person"}

    rows = [{"text": f"thing {number}"} for number in range(9)]
    found = list(answers(loaded, rows, fake_connection(reply, home, check_grammar=False), threads=3))
    unreadable = found.pop(4)
    assert isinstance(unreadable, Unreadable) and "'nonsense'" in str(unreadable)
    assert [each["label"] for each in found if isinstance(each, dict)] == [
        "number" if number % 2 else "person" for number in range(9) if number != 4
    ]


def test_a_model_that_fails_ends_it(questions: Path, home: Settings) -> None:
    connection = fake_connection([EngineFailed("The engine failed.")], home)
    with pytest.raises(Exception) as raised:
        answer(load_program(home, str(questions)), {"text": "a"}, connection)
    assert isinstance(root_error(raised.value), EngineFailed)
