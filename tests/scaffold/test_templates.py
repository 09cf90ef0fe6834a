"""Every template's project is whole as it is written, and refuses to be written over anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.pipeline.validate import validate
from dspy_toolkit.scaffold import TEMPLATES, from_evals, new_project
from dspy_toolkit.settings import Settings

ROOT = Path(__file__).parents[2]


OF_OTHERS = {
    "mood.yaml": """
prompts: "Is it good or bad?"
tests:
  - {vars: {text: "I love it"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "I hate it"}, assert: [{type: equals, value: bad}]}
  - {vars: {text: "I would buy it again"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "A waste of money"}, assert: [{type: equals, value: bad}]}
  - {vars: {text: "Best day of the year"}, assert: [{type: equals, value: good}]}
  - {vars: {text: "Never again"}, assert: [{type: equals, value: bad}]}
""",
    "words.yaml": 'prompts: Translate.\ntests: [{vars: {answer: ja}, assert: [{type: similar, value: "oui, oui"}]}]\n',
    "sums.jsonl": '{"input": "2 + 2", "ideal": ["4", "four"]}\n{"input": "3 + 3", "ideal": "6"}\n',
}
"""Files of other tools: one with labels, one with texts whose input has the usual name of the output, one with several answers."""


@pytest.mark.soak
def test_the_tests_of_every_new_project_pass_as_they_are_written(tmp_path: Path) -> None:
    for template in TEMPLATES:
        new_project(f"my-{template}", template, tmp_path)
    for file, text in OF_OTHERS.items():
        (tmp_path / file).write_text(text)
        from_evals(Path(file).stem, tmp_path / file, tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", "."],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"{2 * (len(TEMPLATES) + len(OF_OTHERS))} passed" in ended.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_templates_project_is_validated(template: str, tmp_path: Path) -> None:
    made = new_project("fresh", template, tmp_path)
    assert made.files == tuple(sorted(path.name for path in made.folder.iterdir()))
    found = validate(Settings(home=tmp_path / "home"), str(made.project))
    states = {(finding.subject, finding.state): finding.what for finding in found}
    assert not [what for (_, state), what in states.items() if state == "wrong"], states
    assert {subject for subject, _ in states} == {"project", "program", "signature", "metric", "dataset"}
    assert "{{" not in "".join(path.read_text() for path in made.folder.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    new_project("fresh", into=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "fresh").iterdir()}
    with pytest.raises(ProjectError, match="is there already"):
        new_project("fresh", "rag", tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "fresh").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["fresh"]


@pytest.mark.parametrize("name", ["Fresh", "../fresh", "", "a b", "9lives", "x/y", 'a"b'])
def test_a_name_that_is_no_folders_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="cannot be used"):
        new_project(name, into=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_template_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="Did you mean classify"):
        new_project("fresh", "clasify", tmp_path)
