"""The program: a description of texts, model and machine → the situation → the advice."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.program import advice_program
from dspy_toolkit.projects.lora.advisor import advisor
from dspy_toolkit.projects.lora.signatures import LoRAOptimizationSignature, LoRATrainingSignature


def make_program(explain: bool = False) -> dspy.Module:
    """A fresh program.

    Args:
        explain: have the model pick among equally good candidates and explain; what it says is checked.
    """
    return advice_program(LoRAOptimizationSignature, lambda: advisor, LoRATrainingSignature if explain else None)
