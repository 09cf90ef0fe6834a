"""Projects from the command line: listed, shown, made, looked over."""

from __future__ import annotations

import json
from pathlib import Path

from dspy_toolkit.registry import promote
from dspy_toolkit.scaffold import TEMPLATES
from dspy_toolkit.settings import Settings


def test_projects_are_listed_also_those_that_cannot_be_loaded(
    command, home: Settings, save_questions, questions: Path
) -> None:
    promote(home, "questions", save_questions())
    Path("dspy-toolkit.toml").write_text(
        f'[projects.questions]\nlocation = "{questions}"\n[projects.lost]\nlocation = "lost.toml"\n'
    )
    found = {row["name"]: row for row in json.loads(command("projects", "list", "--json").out)}
    assert found["questions"]["champion"] == 1 and found["questions"]["summary"] == "Classify a question"
    assert "lost.toml" in found["lost"]["fault"] and found["router"]["fault"] == ""
    shown = command("projects", "list").out
    assert "Classify a question" in shown and "router" in shown


def test_a_project_is_shown(command, questions: Path) -> None:
    about = json.loads(command("projects", "show", str(questions), "--json").out)
    assert about["predictors"] == {"self": "text -> label"}
    assert (about["metric"], about["inputs"], about["champion"]) == ("exact_match", ["text"], None)
    assert "text: str" in command("projects", "show", str(questions)).out


def test_a_new_project_says_what_to_do_next_and_is_validated(command, home: Settings) -> None:
    made = command("projects", "new", "triage")
    assert made.code == 0, made.err
    assert "dspy-toolkit projects validate triage/project.toml" in made.out
    looked = command("projects", "validate", "triage/project.toml")
    assert looked.code == 0 and "90 rows" in looked.out, looked.out + looked.err
    rows = home.path("triage", "rows.csv")
    rows.write_text(rows.read_text() + '"A row that is new.",weather\n')
    wrong = command("projects", "validate", "triage/project.toml", "--json")
    assert wrong.code == 1
    assert any(finding["state"] == "wrong" and "weather" in finding["what"] for finding in json.loads(wrong.out))
    again = command("projects", "new", "triage")
    assert again.code == 1 and "is there already" in again.err
    unknown = command("projects", "new", "other", "--template", "clasify")
    assert unknown.code == 1 and "Did you mean classify?" in unknown.err
    explained = command("projects", "new", "--help").out
    assert [name for name in TEMPLATES if name not in explained] == []


def test_another_tools_tests_become_a_project(command) -> None:
    Path("samples.jsonl").write_text('{"input": "2 + 2", "ideal": "4"}\n{"input": "3 + 3", "ideal": "6"}\n')
    made = json.loads(command("projects", "new", "sums", "--from", "samples.jsonl", "--json").out)
    assert made["files"] == ["project.toml", "rows.jsonl", "test_project.py"]
