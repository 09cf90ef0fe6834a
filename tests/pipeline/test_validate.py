"""Each thing that can be wrong with a project is found, and said with its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.pipeline.validate import Finding, validate, worst
from dspy_toolkit.settings import Settings
from tests.optimizers.toys import TOML, records, write_project

HEAD = """
import dspy
from dspy_toolkit import DatasetSpec, Project, exact_match, Score
from dspy_toolkit.metrics import judge
SPEC = DatasetSpec(source="colours.csv", inputs=("text",), outputs=("label",))
def make():
    return dspy.Predict("text -> label")
ONE = make()
"""


def test_a_good_project_has_nothing_wrong(tmp_path: Path) -> None:
    place = write_project(tmp_path, records(120), TOML.replace("Classify.", "Say the colour."))
    found = validate(Settings(home=tmp_path / "home"), str(place))
    assert worst(found) == "ok", found
    assert any("120 rows: train" in finding.what for finding in found)


def assert_every_finding_has_a_fix(found: list[Finding]) -> None:
    """And one of its own: not that of another finding about the same part."""
    fixes = [(finding.subject, finding.fix) for finding in found if finding.state != "ok"]
    assert fixes
    assert all(fix for _, fix in fixes) and len(set(fixes)) == len(fixes), found


@pytest.mark.parametrize(
    ("project", "subject", "state", "said"),
    [
        ("metric=exact_match, program=make", "signature", "note", "has 3 values alone: blue, green, red"),
        ("metric=exact_match, program=make", "signature", "note", "no instructions of its own"),
        ("metric=exact_match, program=lambda: ONE", "program", "wrong", "the same program each time"),
        ("metric=exact_match, program=lambda: 1 / 0", "program", "wrong", "division by zero"),
        ("metric=lambda example, prediction: 0.5, program=make", "metric", "wrong", "own answer 0.500, not 1"),
        ("metric=lambda example, prediction: 1.0, program=make", "metric", "wrong", "other rows 1 as well"),
        (
            "metric=lambda example, prediction: prediction.colour, program=make",
            "metric",
            "wrong",
            "raised AttributeError",
        ),
        ("metric=exact_match, program=make, files=('none.md',)", "project", "wrong", "none.md"),
        ("metric=judge(rubric='Is it a colour?'), program=make", "metric", "note", "asks a model, and was not tried"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, project: str, subject: str, state: str, said: str) -> None:
    write_project(tmp_path, records(60))
    file = tmp_path / "project.py"
    file.write_text(f'{HEAD}\nproject = Project(name="colours", summary="Colours", dataset=SPEC, {project})\n')
    found = validate(Settings(home=tmp_path / "home"), str(file))
    matching = [finding for finding in found if said in finding.what]
    assert matching, found
    assert (matching[0].subject, matching[0].state) == (subject, state)
    assert_every_finding_has_a_fix(found)


def test_rows_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    made = records(60)
    made[3]["label"], made[7]["label"] = "purple", "pink"
    place = write_project(tmp_path, made)
    found = validate(Settings(home=tmp_path / "home"), str(place))
    (wrong,) = [finding for finding in found if finding.state == "wrong"]
    assert wrong.subject == "dataset" and "purple" in wrong.what and "pink" in wrong.what
    assert f"`dspy-toolkit data check {place}`" in wrong.fix


def test_a_label_that_no_row_has_is_said(tmp_path: Path) -> None:
    place = write_project(tmp_path, records(60), TOML.replace('"blue"]', '"blue", "mauve"]'))
    found = validate(Settings(home=tmp_path / "home"), str(place))
    assert any("mauve" in finding.what for finding in found), found
    assert_every_finding_has_a_fix(found)


def test_near_duplicates_are_counted_and_it_is_said_what_names_them(tmp_path: Path) -> None:
    made = records(60)
    place = write_project(tmp_path, [*made, made[3] | {"text": made[3]["text"] + "!"}])
    found = validate(Settings(home=tmp_path / "home"), str(place))
    (note,) = [finding for finding in found if "near-duplicates of others" in finding.what]
    assert note.state == "note" and f"`dspy-toolkit data check {place}`" in note.fix
    assert_every_finding_has_a_fix(found)


def test_a_project_that_is_not_there_is_one_finding(tmp_path: Path) -> None:
    (found,) = validate(Settings(home=tmp_path / "home"), str(tmp_path / "none.toml"))
    assert (found.subject, found.state) == ("project", "wrong")
    assert "`dspy-toolkit projects list`" in found.fix
