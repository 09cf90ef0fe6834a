"""When a prediction is marked as abstained, and what a project may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project
from dspy_toolkit.project.abstention import marked


@pytest.mark.parametrize(
    ("prediction", "below", "said"),
    [
        ({"label": "a", "confidence": 0.59}, 0.6, True),
        ({"label": "a", "confidence": 0.6}, 0.6, False),
        ({"label": "a", "confidence": 0.1}, None, None),
        ({"label": "a"}, 0.6, None),
        ({"label": "a", "confidence": "low"}, 0.6, None),
        ({"label": "a", "confidence": True}, 0.6, None),
        ({"label": "a", "confidence": 0.1, "abstained": "by itself"}, 0.6, "by itself"),
    ],
)
def test_a_prediction_is_marked_where_it_is_less_sure_than_asked(prediction: Any, below: Any, said: Any) -> None:
    found = marked(prediction, below)
    assert found.pop("abstained", None) == said
    assert found == {name: value for name, value in prediction.items() if name != "abstained"}


@pytest.mark.parametrize("below", [0, -0.1, 1.01, "0.5", True])
def test_what_is_no_confidence_is_refused(below: Any) -> None:
    spec = DatasetSpec(source="x.csv", inputs=("text",), outputs=("label",))
    with pytest.raises(ProjectError, match=r"project p: abstain_below is .*above 0 and at most 1"):
        Project("p", "", lambda: None, exact_match, spec, abstain_below=below)  # pyright: ignore[reportArgumentType]
