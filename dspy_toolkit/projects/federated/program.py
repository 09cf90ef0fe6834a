"""The program: a description of a federated training → the situation → the advice."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.program import advice_program
from dspy_toolkit.projects.federated.advisor import advisor
from dspy_toolkit.projects.federated.signatures import ClientUpdateSignature, FederatedLearningSignature


def make_program(explain: bool = False) -> dspy.Module:
    """A fresh program.

    Args:
        explain: have the model pick among equally good candidates and explain; what it says is checked.
    """
    return advice_program(FederatedLearningSignature, lambda: advisor, ClientUpdateSignature if explain else None)
