"""The verbs of `programs` that change, move and compare, at a terminal and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_toolkit.registry import champion, load_version, promote, save_version
from dspy_toolkit.registry.messages import messages_of
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine
from dspy_toolkit.tracking.mlflow_client import connect
from dspy_toolkit.tracking.runs import open_run


def test_show_prints_the_messages_as_the_model_gets_them(command, save_questions) -> None:
    save_questions("Be [bold]brief[/bold].")
    shown = command("programs", "show", "questions@1", "-i", "text=Who wrote Persuasion?")
    assert shown.code == 0, shown.err
    for text in (
        "1 demonstration",
        "Be [bold]brief[/bold].",
        "Who wrote Emma?",
        "Who wrote Persuasion?",
        "[[ ## label ## ]]",
    ):
        assert text in shown.out
    sent = json.loads(command("programs", "show", "questions@1", "--json").out)["messages"]
    (prompt,) = sent
    assert [message["role"] for message in prompt["messages"]] == ["system", "user", "assistant", "user"]
    assert "{{text}}" in prompt["messages"][-1]["content"]
    assert "guided_grammar" in prompt["options"]
    wrong = command("programs", "show", "questions@1", "-i", "txt=x")
    assert wrong.code == 1 and "Did you mean text?" in wrong.err


TYPED = """
name = "typed"
signature = 'question: str, passages: list[str], most: int -> answer: str'
instructions = "Answer from the passages, which may be long: this instruction has more characters than a terminal has columns."
metric = "exact_match"
[dataset]
source = "typed.csv"
inputs = ["question", "passages", "most"]
outputs = ["answer"]
"""


def test_what_is_shown_is_what_a_model_receives_to_the_letter(
    command, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "typed.toml"
    place.write_text(TYPED)
    inputs = {"question": "Who\twrote  it?  \n" + "long " * 40, "passages": ["one", "two"], "most": 3}
    connection = fake_connection([{"answer": "Ann"}], home)
    with connection.context():
        load_program(home, str(place)).program(**inputs)
    (request,) = fake_engine(connection).requests
    received = [{"role": message.role, "content": message.content} for message in request.messages]
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", connection.model)
    given = (f"question={inputs['question']}", 'passages=["one","two"]', "most=3")
    words = ("programs", "show", str(place), *(word for pair in given for word in ("-i", pair)))
    as_json = command(*words, "--json")
    assert as_json.err == ""
    (prompt,) = json.loads(as_json.out)["messages"]
    assert prompt["messages"] == received
    shown = command(*words)
    assert shown.err == ""
    assert all(f"\n{message['content']}\n" in shown.out for message in received)


def test_an_input_that_does_not_fit_or_comes_twice_is_refused_and_one_that_is_left_out_is_no_mistake(
    command, tmp_path: Path
) -> None:
    place = tmp_path / "typed.toml"
    place.write_text(TYPED)
    wrong = command("programs", "show", str(place), "-i", "most=many")
    assert (wrong.code, wrong.out) == (1, "") and "The input most is 'many'" in wrong.err
    twice = command("programs", "show", str(place), "-i", "most=1", "-i", "most=2")
    assert twice.code == 1 and "'most' is given twice" in twice.err
    shown = command("programs", "show", str(place))
    assert shown.err == "" and "{{passages}}" in shown.out and "{{most}}" in shown.out


def test_a_long_message_is_shown_whole(command, save_questions) -> None:
    words = " ".join(f"word{number}" for number in range(500))
    save_questions(words)
    shown = command("programs", "show", "questions@1").out
    assert all(f"word{number}" in shown for number in range(500))


def test_show_of_a_program_whose_project_is_gone_shows_what_was_saved(command, save_questions, questions: Path) -> None:
    save_questions("Be brief.")
    questions.unlink()
    shown = command("programs", "show", "questions@1")
    assert shown.code == 0
    assert "Be brief." in shown.out and "The messages cannot be shown" in shown.out


def test_two_programs_are_put_side_by_side(command, save_questions) -> None:
    save_questions("Be brief.", reports={"candidate_val": {"mean": 0.5}})
    save_questions("Be exact.", optimizer="gepa")
    shown = command("programs", "diff", "questions@1", "questions@2")
    assert shown.code == 0
    for text in ("Be brief.", "Be exact.", "bootstrap", "gepa", "0.500", "1 in both", "different prompts"):
        assert text in shown.out
    found = json.loads(command("programs", "diff", "questions@1", "questions@1", "--json").out)
    assert found["predictors"][0]["both"] == 1 and found["predictors"][0]["only_first"] == []
    assert "The model is sent the same." in command("programs", "diff", "questions@1", "questions@1").out


def test_levers_and_sealed_scores_are_put_side_by_side(command, home: Settings, save_questions) -> None:
    save_questions("Be brief.", reports={"comparison": {"candidate": {"mean": 0.5}, "delta": 0.25}})
    state, manifest = load_version(home, "questions@1")
    better = manifest.model_copy(update={"reports": {"comparison": {"candidate": {"mean": 0.625}, "delta": 0.125}}})
    save_version(home, "questions", {**state, "format": "plain"}, better, open_run(home, "questions", "optimize"))
    found = json.loads(command("programs", "diff", "questions@1", "questions@2", "--json").out)
    assert found["predictors"][0]["levers"] == [[], ["format plain"]]
    assert found["facts"]["sealed"] == [0.5, 0.625]
    assert found["facts"]["gain over its champion"] == [0.25, 0.125]
    ended = command("programs", "diff", "questions@1", "questions@2")
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["sealed", "0.500", "0.625"] in rows
    assert ["levers", "format", "plain"] in rows
    assert "different prompts" in ended.out  # the instructions and demonstrations are the same


def test_promotion_rollback_history_and_deletion(command, home: Settings, save_questions) -> None:
    promote(home, "questions", save_questions("one"))
    save_questions("two")
    refused = command("programs", "promote", "questions@2")
    assert refused.code == 1 and "never compared" in refused.err and "reprove questions@2" in refused.err
    forced = command("programs", "promote", "questions@2", "--force", "--reason", "a customer waits", "--json")
    assert json.loads(forced.out)["replaced"] == 1
    shown = command("programs", "history", "questions")
    assert "past the gate, because" in shown.out and "a customer waits" in " ".join(shown.out.split())
    assert [each["version"] for each in json.loads(command("programs", "history", "questions", "--json").out)] == [2, 1]
    assert json.loads(command("programs", "rollback", "questions", "--json").out) == {
        "project": "questions", "version": 1, "rolled_back_from": 2,
    }  # fmt: skip
    assert "version 2 is deleted" in command("programs", "delete", "questions@2").out
    assert command("programs", "delete", "questions@1").code == 1
    assert champion(home, "questions").version == 1


def test_export_and_import(command, home: Settings, save_questions, questions: Path) -> None:
    promote(home, "questions", save_questions("one"))
    exported = command("programs", "export", "questions", "--to", "q.bundle")
    assert exported == (0, "q.bundle\n", "")
    again = command("programs", "import", "q.bundle", "--project", str(questions))
    assert again.code == 0 and "questions@1 is this program already" in again.out
    other = questions.with_name("other.toml")
    other.write_text(
        questions.read_text()
        .replace('"questions"', '"other"')
        .replace("text: str", "query: str")
        .replace('["text"]', '["query"]')
    )
    made = command("programs", "import", "q.bundle", "--project", str(other), "--map", "text=query", "--json")
    assert json.loads(made.out)["version"] == 1
    assert command("programs", "import", "q.bundle", "--map", "text").code == 1


def test_plain_dspy_loads_what_is_exported_without_the_toolkit(command, home: Settings, save_questions) -> None:
    save_questions("Be brief.")
    made = command("programs", "export", "questions@1", "--as", "dspy", "--to", "plain")
    assert made.out.split() == ["plain/program.json", "plain/load.py"]
    code = (
        "import sys; sys.path.insert(0, 'plain'); from load import program; "
        "assert not [name for name in sys.modules if name.startswith('dspy_toolkit')]; "
        "print(program.signature.instructions, program.demos[0]['text'], list(program.signature.output_fields))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=home.path(), capture_output=True, text=True, check=False)
    assert ended.stdout == "Be brief. Who wrote Emma? ['label']\n", ended.stderr
    assert len((home.path() / "plain/load.py").read_text().splitlines()) <= 14


def test_messages_for_any_client_say_what_they_cannot_hold(command, home: Settings, save_questions) -> None:
    save_questions("Be brief.")
    made = command("programs", "export", "questions@1", "--as", "prompt", "--to", "p.json")
    assert "grammar" in made.err
    content = json.loads((home.path() / "p.json").read_text())
    assert content["predictors"][0]["inputs"] == ["text"]
    assert "{{text}}" in content["predictors"][0]["messages"][-1]["content"]


def test_mlflows_prompt_registry_holds_it_beside_the_versions(command, home: Settings, save_questions) -> None:
    save_questions("Be brief.")
    made = command("programs", "export", "questions@1", "--as", "mlflow")
    assert made.out == "prompts:/questions.prompt/1\n", made.err
    kept = connect(home).get_prompt_version("questions.prompt", 1)
    (sent,) = messages_of(load_program(home, "questions@1").program, home)
    assert kept.template == list(sent.messages)
    assert kept.variables == {"text"} and kept.tags["program"] == "questions@1"
    # A prompt is an entry of the same registry, and no project.
    assert {each["project"] for each in json.loads(command("programs", "list", "--json").out)} == {"questions"}


def test_migrate_says_which_versions_fit(command, home: Settings, save_questions, questions: Path) -> None:
    assert "No program is saved" in command("programs", "migrate").out
    promote(home, "questions", save_questions())
    ended = command("programs", "migrate", "--json")
    assert ended.code == 0 and json.loads(ended.out)[0]["state"] == "fits"
    questions.write_text(questions.read_text().replace("text: str", "query: str").replace('["text"]', '["query"]'))
    ended = command("programs", "migrate")
    assert ended.code == 1 and "does not fit" in ended.out


def test_reprove_of_nothing_and_of_what_cannot_be_run(command, save_questions) -> None:
    assert "Nothing is promoted" in command("programs", "reprove").out
    save_questions()
    ended = command("programs", "reprove", "questions", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)[0]["outcome"] == "could not be run"


@pytest.mark.parametrize(
    "verb",
    ["list", "show", "diff", "history", "promote", "rollback", "delete", "export", "import", "migrate", "reprove"],
)
def test_every_verb_speaks_json(command, verb: str) -> None:
    assert "--json" in command("programs", verb, "--help").out
