"""The project `diffusion`: read a description of images and waiting, and advise."""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.advising.definition import advice_project
from dspy_toolkit.projects.diffusion.advisor import advisor
from dspy_toolkit.projects.diffusion.program import make_program

project = advice_project(
    advisor, "Advise on sampling a diffusion model, from measured ground", make_program, Path(__file__).parent
)
