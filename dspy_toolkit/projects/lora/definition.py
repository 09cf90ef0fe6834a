"""The project `lora`: read a description of texts, model and machine, and advise."""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit.advising.definition import advice_project
from dspy_toolkit.projects.lora.advisor import advisor
from dspy_toolkit.projects.lora.program import make_program

project = advice_project(
    advisor, "Advise on fine-tuning an adapter, from measured ground", make_program, Path(__file__).parent
)
