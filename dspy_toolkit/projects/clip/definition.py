"""The project `clip`: read a description of pictures and pairs, and advise."""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.advising.definition import advice_project
from dspy_toolkit.projects.clip.advisor import advisor
from dspy_toolkit.projects.clip.program import make_program

project = advice_project(
    advisor, "Advise on adapting an image-text model, from measured ground", make_program, Path(__file__).parent
)
