"""Tests of other tools become projects, and what has no counterpart is named rather than dropped."""

from __future__ import annotations

import json
from pathlib import Path

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import score
from dspy_toolkit.pipeline.validate import examples_of, validate
from dspy_toolkit.project import load_project
from dspy_toolkit.scaffold import from_evals
from dspy_toolkit.settings import Settings

PROMPTFOO = """
prompts:
  - "Say whether the text is good or bad.\\n\\nText: {{text}}"
providers: [openai:gpt-4o]
defaultTest:
  options: {}
tests:
  - {vars: {text: "I love it"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "I hate it"}, assert: [{type: equals, value: bad}]}
  - {vars: {text: "It is fine, I would buy it again"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "A waste of money"}, assert: [{type: equals, value: bad}]}
  - {vars: {text: "Best day of the year"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "Never again"}, assert: [{type: equals, value: bad}]}
"""


def test_promptfoos_tests_become_rows_and_its_prompt_the_instructions(tmp_path: Path) -> None:
    file = tmp_path / "promptfooconfig.yaml"
    file.write_text(PROMPTFOO)
    made = from_evals("mood", file, tmp_path)
    project = load_project(str(made.project))
    signature = project.build().signature
    assert signature.instructions == "Say whether the text is good or bad.\n\nText:"
    assert project.dataset.inputs == ("text",) and project.dataset.outputs == ("answer",)
    assert str(signature.output_fields["answer"].annotation) == "typing.Literal['bad', 'good']"
    rows = [json.loads(line) for line in (made.folder / "rows.jsonl").read_text().splitlines()]
    assert rows[1] == {"text": "I hate it", "answer": "bad"} and len(rows) == 6


def test_openai_evals_samples_become_rows(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
    samples = [
        {
            "input": [{"role": "system", "content": "Name the capital."}, {"role": "user", "content": land}],
            "ideal": [city],
        }
        for land, city in cities.items()
    ]
    file.write_text("\n".join(map(json.dumps, samples)))
    project = load_project(str(from_evals("capitals", file, tmp_path).project))
    signature = project.build().signature
    assert signature.instructions == "Name the capital."
    assert list(signature.fields) == ["input", "answer"] and signature.output_fields["answer"].annotation is str


def test_every_answer_that_a_sample_accepts_is_kept_and_scores_1(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    samples = [{"input": "Capital of the Netherlands?", "ideal": ["Amsterdam", "The Hague", "Amsterdam"]}]
    samples += [{"input": f"{n} + {n}?", "ideal": str(2 * n)} for n in range(8)]
    file.write_text("\n".join(map(json.dumps, samples)))
    made = from_evals("capitals", file, tmp_path)
    project = load_project(str(made.project))
    row = examples_of(project)[0]
    assert (row.answer, list(row.accepted)) == ("Amsterdam", ["Amsterdam", "The Hague"])
    values = [score(project.metric, row, dspy.Prediction(answer=said)).value for said in (" the hague", "Delft")]
    assert values == [1, 0]
    assert not [each for each in validate(Settings(home=tmp_path / "home"), str(made.project)) if each.state == "wrong"]


def test_the_variables_of_default_test_are_every_tests(tmp_path: Path) -> None:
    file = tmp_path / "promptfooconfig.yaml"
    own = PROMPTFOO.replace('text: "Never again"', 'text: "Never again", language: German')
    file.write_text(own.replace("options: {}", "vars: {language: English}"))
    rows = from_evals("mood", file, tmp_path).folder.joinpath("rows.jsonl").read_text().splitlines()
    assert [json.loads(row)["language"] for row in rows] == ["English"] * 5 + ["German"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "type: equals, value: bad",
            "type: javascript, value: bad",
            "test 2 asserts 'javascript', which has no counterpart",
        ),
        ("{type: equals, value: bad}", "", "test 2 has 0 assertions"),
        ('"I hate it"', '"file://secret.txt"', "stands for something elsewhere"),
        ('"I hate it"', "[1, 2]", "is no text"),
        ('vars: {text: "I hate it"}', "vars: 3", "test 2: vars is no mapping"),
        ("prompts:\n  - ", "prompts: [file://prompt.txt]\nothers:\n  - ", "is a file"),
        ("tests:", "tests: file://tests.csv\nothers:", "tests is no list"),
        ('{text: "I hate it"}', '{other: "I hate it"}', "not every test has all of text, other"),
        ("prompts:\n  - ", "prompts:\n  - 'Good or bad? {{text}}'\n  - ", "has 2 prompts; a project has one"),
        ("Text: {{text}}", "Text: {{text | upper}}", r"the prompt computes '{{text \| upper}}'"),
        ("value: bad}", "value: bad, threshold: 0.8}", "test 2, the assertion 'equals' has threshold, which has no"),
        ("value: bad}", "value: bad, weight: 2}", "test 2, the assertion 'equals' has weight"),
        ("value: bad}", "value: bad, transform: output.trim()}", "test 2, the assertion 'equals' has transform"),
        ("{type: equals, value: bad}]", "{type: equals, value: bad}], threshold: 0.5", "test 2 has threshold"),
        ("options: {}", "options: {transform: output.trim()}", "defaultTest has options.transform"),
        ("\n  options: {}", " file://default.yaml", "defaultTest is 'file://default.yaml'"),
        ("providers:", "scenarios: [a]\nproviders:", "has scenarios, which has no counterpart"),
        ('{text: "I hate it"}', '{text: "I hate it", Text: "Me too"}', "two of text, Text are one name here"),
        ("tests:", "tests: !!python/object/apply:os.system ['true']\nothers:", "is no YAML"),
    ],
)
def test_what_no_project_can_have_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "promptfooconfig.yaml"
    assert old in PROMPTFOO
    file.write_text(PROMPTFOO.replace(old, new, 1))
    with pytest.raises(ProjectError, match=said):
        from_evals("mood", file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_a_sample_has_beside_its_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"input": "2 + 2", "ideal": "4", "choices": ["3", "4"]}\n')
    with pytest.raises(ProjectError, match="line 1 has choices, which has no counterpart"):
        from_evals("sums", file, tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=6),
    system=st.text(max_size=20),
)
def test_any_texts_are_kept_or_refused(tmp_path: Path, texts: list[tuple[str, str]], system: str) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [
        json.dumps(
            {"input": [{"role": "system", "content": system}, {"role": "user", "content": asked}], "ideal": ideal}
        )
        for asked, ideal in texts
    ]
    file.write_text("\n".join(lines))
    folder = tmp_path / "made"
    try:
        made = from_evals("made", file, tmp_path)
    except ProjectError:
        assert not folder.exists()
        return
    try:
        rows = [
            json.loads(line) for line in (made.folder / "rows.jsonl").read_text(encoding="utf-8").split("\n") if line
        ]
        assert [(row["input"], row["answer"]) for row in rows] == texts
        assert load_project(str(made.project)).name == "made"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
