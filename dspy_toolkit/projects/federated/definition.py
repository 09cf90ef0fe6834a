"""The project `federated`: read a description of a training, and advise."""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.advising.definition import advice_project
from dspy_toolkit.projects.federated.advisor import advisor
from dspy_toolkit.projects.federated.program import make_program

project = advice_project(
    advisor, "Advise on a federated training, from measured ground", make_program, Path(__file__).parent
)
