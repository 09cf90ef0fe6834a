"""The quickstart project: a request to the toolkit, in a user's words → the project that handles it.

signatures  request → project
program     one prediction
reference_rules  a keyword rule, a nearest neighbour and a logistic regression, without a language model
"""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project
from dspy_toolkit.projects.router.program import make_program
from dspy_toolkit.projects.router.reference_rules import keyword_rule, logistic_regression, nearest_neighbour

project = Project(
    name="router",
    summary="Name the project of the toolkit that handles a request",
    program=make_program,
    metric=exact_match,
    dataset=DatasetSpec(
        source="requests.jsonl",
        inputs=("request",),
        outputs=("project",),
        fractions=Fractions(train=0.42, val=0.27, sealed=0.31),
        # Chosen by data/router/choose_seed.py, by the splits' counts alone, before any program was run.
        seed=2506,
    ),
    reference_rules={
        "keyword rule": keyword_rule,
        "nearest neighbour": nearest_neighbour,
        "logistic regression": logistic_regression,
    },
    folder=Path(__file__).parent,  # has a link to the rows in data/router; in the wheel, the rows themselves
)
