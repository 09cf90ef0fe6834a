"""The program: a description of images and waiting → the situation → the advice."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.program import advice_program
from dspy_toolkit.projects.diffusion.advisor import advisor
from dspy_toolkit.projects.diffusion.signatures import DiffusionOptimizationSignature, SamplingScheduleSignature


def make_program(explain: bool = False) -> dspy.Module:
    """A fresh program.

    Args:
        explain: have the model pick among equally good candidates and explain; what it says is checked.
    """
    return advice_program(
        DiffusionOptimizationSignature, lambda: advisor, SamplingScheduleSignature if explain else None
    )
