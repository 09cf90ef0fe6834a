"""What is saved, as a person sees it."""

from __future__ import annotations

import json
from pathlib import Path

from dspy_toolkit.registry import promote
from dspy_toolkit.settings import Settings


def test_an_empty_home_says_how_to_begin_and_is_left_alone(command, home: Settings) -> None:
    home.path("mlflow.db").unlink()
    ended = command("programs", "list")
    assert ended.code == 0 and ended.err == ""
    assert "No program is saved" in ended.out
    assert "python -m flows.optimize_program --project NAME" in ended.out
    assert "router" in ended.out
    assert list(home.path().iterdir()) == []


def test_the_projects_and_the_versions_are_listed(command, home: Settings, save_questions, questions: Path) -> None:
    save_questions("one")
    promote(home, "questions", save_questions("two"))
    projects = command("programs", "list")
    assert projects.code == 0
    assert projects.out.splitlines()[1].split()[:4] == ["questions", "2", "bootstrap", "2"]
    for name in ("questions", str(questions)):
        versions = command("programs", "list", name)
        assert "champion" in versions.out and "mlx/tiny@01234567" in versions.out
        assert all(len(line) <= 80 for line in versions.out.splitlines())


def test_the_list_as_json(command, home: Settings, save_questions) -> None:
    assert json.loads(command("programs", "list", "--json").out) == []
    promote(home, "questions", save_questions())
    (version,) = json.loads(command("programs", "list", "--json").out)
    assert (version["project"], version["version"], version["aliases"]) == ("questions", 1, ["champion"])


def test_an_unknown_project_names_the_nearest(command, save_questions) -> None:
    save_questions()
    ended = command("programs", "list", "question")
    assert ended.code == 1 and ended.out == ""
    assert ended.err.startswith("Error: ") and "Did you mean questions?" in ended.err


def test_a_program_is_shown_readably(command, save_questions) -> None:
    save_questions("Be [bold]brief[/bold].")
    shown = command("programs", "show", "questions@1").out
    for text in (
        "Be [bold]brief[/bold].",
        "Who wrote Emma?",
        "What it sends: 1 demonstration",
        "bootstrap max_bootstrapped_demos=1",
        "50.0 % [25.0, 75.0] on 40 rows",
        "+12.5 points [+1.0, +24.0]",
    ):
        assert text in shown
    assert "augmented" not in shown


def test_the_projects_own_program_is_shown_before_the_first_promotion(command, questions: Path) -> None:
    shown = command("programs", "show", str(questions))
    assert shown.code == 0
    assert (
        "nothing is promoted" in shown.out and "Classify the question." in shown.out and "0 demonstrations" in shown.out
    )


def test_a_program_as_json_holds_all_of_it(command, save_questions) -> None:
    save_questions("Be brief.")
    shown = json.loads(command("programs", "show", "questions@1", "--json").out)
    assert shown["manifest"]["project"] == "questions"
    assert shown["program"]["signature"]["instructions"] == "Be brief."


def test_rollback_says_from_where_to_where(command, home: Settings, save_questions) -> None:
    promote(home, "questions", save_questions("one"))
    promote(home, "questions", save_questions("two"))
    ended = command("programs", "rollback", "questions")
    assert ended == (0, "questions: the champion was version 2 and is version 1 now.\n", "")
    ended = command("programs", "rollback", "questions")
    assert ended.code == 1 and "nothing to roll back to" in ended.err
