"""The project of an advisor: its descriptions, its program, its metric, and what simple rules reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_toolkit.advising.program import advice_metric
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.project import Project

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.advising.advisor import Advisor


def advice_project(advisor: Advisor, summary: str, program: Callable[[], dspy.Module], folder: Path) -> Project:
    """A project whose rows are `descriptions.jsonl` in `folder`: `request`, the situation's fields, and `context`, by which
    rows are kept on one side of a split.
    """
    return Project(
        name=advisor.name,
        summary=summary,
        program=program,
        metric=advice_metric(lambda: advisor),
        dataset=DatasetSpec(
            source="descriptions.jsonl",
            inputs=("request",),
            outputs=tuple(advisor.situation.model_fields),
            # Some hundred rows in groups: a perfect reader could not be proved to be one on the forty that a third would be.
            fractions=Fractions(train=0.35, val=0.2, sealed=0.45),
            group="context",
        ),
        reference_rules={"keyword rules": keyword_rule(advisor), "most frequent levels": most_frequent(advisor)},
        files=("runs.parquet",),
        folder=folder,
    )


def keyword_rule(advisor: Advisor) -> Callable[[list[dspy.Example]], Callable[[dspy.Example], dspy.Prediction]]:
    """The advisor's keyword rules as a reference."""

    def fit(train: list[dspy.Example]) -> Callable[[dspy.Example], dspy.Prediction]:
        import dspy

        return lambda case: dspy.Prediction(**advisor.keywords(case.request))

    return fit


def most_frequent(advisor: Advisor) -> Callable[[list[dspy.Example]], Callable[[dspy.Example], dspy.Prediction]]:
    """Every field's most frequent level among the training rows, whatever is asked."""

    def fit(train: list[dspy.Example]) -> Callable[[dspy.Example], dspy.Prediction]:
        from collections import Counter

        import dspy

        answer = {
            name: Counter(case[name] for case in train).most_common(1)[0][0] for name in advisor.situation.model_fields
        }
        return lambda case: dspy.Prediction(**answer)

    return fit
