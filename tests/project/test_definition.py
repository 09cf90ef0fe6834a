"""What a project refuses, and making its program."""

from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import exact_match, judge, token_f1, weighted, with_options
from dspy_toolkit.project import Project, load_project


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Not A Slug"}, "cannot be used"),
        ({"name": ""}, "cannot be used"),
        ({"metric": "exact_match"}, "metric is 'exact_match'. Give a function"),
        ({"dataset": {"source": "x.csv"}}, "Give a DatasetSpec"),
        ({"optimizer": "miprov"}, "Did you mean mipro?"),
        ({"budget": "lite"}, "no budget 'lite'"),
        ({"dataset": DatasetSpec(source="x.csv", inputs=("text",))}, "dataset.outputs is empty. exact_match needs one"),
        (
            {"metric": token_f1, "dataset": DatasetSpec(source="x.csv", inputs=("text",))},
            "dataset.outputs is empty. token_f1 needs one",
        ),
        (
            {"metric": weighted([exact_match, with_options(token_f1, fields=["lable"])])},
            "fields of token_f1 has 'lable', which is not in dataset.outputs. Did you mean label?",
        ),
    ],
)
def test_a_project_checks_its_fields(change: dict[str, object], says: str) -> None:
    fields = {
        "name": "mine",
        "summary": "Mine",
        "program": lambda: dspy.Predict("text -> label"),
        "metric": exact_match,
        "dataset": DatasetSpec(source="x.csv", inputs=("text",), outputs=("label",)),
    }
    with pytest.raises(ProjectError) as caught:
        Project(**{**fields, **change})
    assert says in str(caught.value)


def test_a_judge_needs_no_outputs_to_compare_with() -> None:
    dataset = DatasetSpec(source="x.csv", inputs=("text",))
    Project(
        name="mine",
        summary="Mine",
        program=lambda: dspy.Predict("text -> label"),
        metric=judge("Kind?"),
        dataset=dataset,
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(mine.py, line \d+\)"),
        ("'text'", "its program is 'text'"),
        ("dspy.Module()", "no predictor"),
    ],
)
def test_a_program_that_cannot_be_made_is_explained(tmp_path: Path, body: str, says: str, python_text: str) -> None:
    (tmp_path / "mine.py").write_text(python_text.replace("program=Program", f"program=lambda: {body}"))
    with pytest.raises(ProjectError, match=says):
        load_project(f"{tmp_path}/mine.py").build()
