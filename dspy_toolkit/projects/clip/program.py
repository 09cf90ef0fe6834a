"""The program: a description of pictures and pairs → the situation → the advice."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.program import advice_program
from dspy_toolkit.projects.clip.advisor import advisor
from dspy_toolkit.projects.clip.signatures import CLIPDomainAdaptationSignature, ContrastiveLossSignature


def make_program(explain: bool = False) -> dspy.Module:
    """A fresh program.

    Args:
        explain: have the model pick among equally good candidates and explain; what it says is checked.
    """
    return advice_program(CLIPDomainAdaptationSignature, lambda: advisor, ContrastiveLossSignature if explain else None)
