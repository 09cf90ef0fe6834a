"""Tests of other tools become projects, and what has no counterpart is named rather than dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.project import load_project
from dspy_toolkit.scaffold import from_evals

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
        ("prompts:\n  - ", "prompts:\n  - file://prompt.txt\n  - ", "is a file"),
        ("tests:", "tests: file://tests.csv\nothers:", "tests is no list"),
        ('{text: "I hate it"}', '{other: "I hate it"}', "not every test has all of text, other"),
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
