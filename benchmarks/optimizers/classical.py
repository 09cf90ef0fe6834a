"""What a user would do without any language model, on the same training rows: the reference beside each task.

The inputs' texts become TF-IDF vectors of words and pairs of words. Where the only output is a choice, logistic
regression names it; else the answer is that of the nearest training row by cosine. Both are scikit-learn's with its
defaults, and are scored by the task's own metric on the same sealed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_origin

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.pipeline.compare import score_reference_rules
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import Project
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    import dspy

LOGISTIC = "TF-IDF + logistic regression"
NEAREST = "nearest neighbour by TF-IDF"

Rule = Callable[["dspy.Example"], "dspy.Prediction"]


def classical(context: Context, dataset: Dataset) -> tuple[str, float]:
    """(what it is, its mean on the sealed rows), fitted to the training rows."""
    name, fit = (LOGISTIC, logistic) if is_choice(context.project) else (NEAREST, nearest)
    project = replace(context.project, reference_rules={name: fit})
    train, sealed = (context.store.read_frame(part) for part in (dataset.train, dataset.sealed))
    return name, score_reference_rules(project, train, sealed)[name]


def is_choice(project: Project) -> bool:
    """Whether the only output is one of a few names."""
    fields = fields_of(project.build())
    return [get_origin(fields[output]) for output in project.dataset.outputs] == [Literal]


def logistic(train: Sequence[dspy.Example]) -> Rule:
    """Names one of the training rows' answers."""
    import dspy
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (output,) = dict(train[0].labels())
    model = make_pipeline(_vectors(), LogisticRegression(max_iter=1_000))
    model.fit([_text(row) for row in train], [row[output] for row in train])
    return lambda case: dspy.Prediction(**{output: str(model.predict([_text(case)])[0])})


def nearest(train: Sequence[dspy.Example]) -> Rule:
    """Answers what the nearest training row does; of equally near ones the first."""
    import dspy
    from sklearn.neighbors import NearestNeighbors

    vectors = _vectors()
    neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors.fit_transform([_text(r) for r in train]))

    def answer(case: dspy.Example) -> dspy.Prediction:
        (row,) = neighbours.kneighbors(vectors.transform([_text(case)]), return_distance=False)[0]
        return dspy.Prediction(**train[row].labels())

    return answer


def _vectors() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # By default words of one character are left out, and with them small numbers.
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")


def _text(row: dspy.Example) -> str:
    return " ".join(str(value) for value in dict(row.inputs()).values())
