"""`dspy-toolkit judge agreement`: grades from a file, and what is kept for a project's pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.pipeline.judge_check import kept_check
from dspy_toolkit.project import load_project
from dspy_toolkit.settings import Settings
from tests.cli.conftest import Command

PROJECT = """\
name = "polite"
signature = "request: str -> reply: str"

[dataset]
source = "rows.csv"
inputs = ["request"]
outputs = []

[metric]
name = "judge"
rubric = "{rubric}"
"""


def grades(folder: Path, rows: list[tuple[object, object]], name: str = "grades.csv") -> str:
    """Rows of (the judge's score, a person's grade)."""
    lines = ["value,human", *(f"{ours},{theirs}" for ours, theirs in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


ROWS = [(1, "yes")] * 12 + [(1, "no")] * 6 + [(0, "no")] * 12 + [(1, "")] * 4


def test_agreement_is_shown(command: Command, home: Settings) -> None:
    ended = command("judge", "agreement", grades(home.path(), ROWS))
    assert ended.code == 0, ended.err
    lines = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in ended.out.strip().splitlines())
    assert "30 rows" in ended.out, "rows without a grade are left out"
    assert lines["same grade"] == "80.0% (63 to 90)"
    assert lines["Cohen's kappa"].startswith("0.62 (")
    assert (lines["mean of the judge"], lines["mean of people"]) == ("60.0%", "40.0%")
    assert lines["passes what people pass (12 rows)"].startswith("100.0%")
    assert lines["fails what people fail (18 rows)"].startswith("66.7%")


def test_grades_of_a_scale_are_weighted_and_json_is_for_scripts(command: Command, home: Settings) -> None:
    rows: list[tuple[object, object]] = [(0.75, 4), (1, 5), (0, 1), (0.5, 2), (0.25, 2)] * 8
    ended = command("judge", "agreement", grades(home.path(), rows), "--scale", "5", "--json")
    seen = json.loads(ended.out)
    assert seen["agreement"]["weights"] == "quadratic"
    assert seen["agreement"]["raw"]["value"] == 0.8
    assert seen["agreement"]["kappa"]["value"] > 0.9
    assert seen["calibration"] == {"positives": 16, "accepted": 16, "negatives": 24, "rejected": 16}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([(1, 4)], (), r"row 2: human is '4'\. Write a score from 0 to 1, or yes or no\. For grades .* give --scale"),
        ([(1, 7)], ("--scale", "5"), "human is '7'. Write a number from 1 to 5"),
        ([(3, 1)], (), "value is '3'"),
        ([(1, "good")], (), "human is 'good'"),
        ([(1, "")], (), 'no grade in the column "human"'),
        ([(1, 1)], ("--human", "humans"), 'no column "humans". Did you mean human?'),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    command: Command, home: Settings, rows: list[tuple[object, object]], options: tuple[str, ...], says: str
) -> None:
    ended = command("judge", "agreement", grades(home.path(), rows), *options)
    assert ended.code == 1
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(ended.err)


def test_a_projects_check_is_kept_until_its_metric_changes(command: Command, home: Settings) -> None:
    folder = home.path()
    (folder / "polite.toml").write_text(PROJECT.format(rubric="Is it polite?"))
    (folder / "rows.csv").write_text("request\nhello\n")
    ended = command("judge", "agreement", grades(folder, ROWS), "--project", "polite.toml")
    assert ended.code == 0, ended.err
    assert "judges/polite.json" in ended.err
    project = load_project(str(folder / "polite.toml"))
    kept = kept_check(home, project)
    assert kept is not None
    assert (kept.source, kept.agreement.n, kept.calibration.accepted) == ("grades.csv", 30, 12)
    (folder / "polite.toml").write_text(PROJECT.format(rubric="Is it very polite?"))
    assert kept_check(home, load_project(str(folder / "polite.toml"))) is None


def test_a_check_that_is_damaged_says_what_to_do(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "polite.toml").write_text(PROJECT.format(rubric="Is it polite?"))
    project = load_project(str(tmp_path / "polite.toml"))
    assert kept_check(home, project) is None
    home.path("judges").mkdir(parents=True)
    home.path("judges", "polite.json").write_text("{}")
    with pytest.raises(DatasetError, match="polite.json cannot be read: .*judge agreement` again, or remove it"):
        kept_check(home, project)
