"""The signatures of federated learning."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.signature import reading_signature
from dspy_toolkit.projects.federated.situation import FederatedConfiguration, FederatedSituation

FederatedLearningSignature = reading_signature(
    "FederatedLearningSignature",
    FederatedSituation,
    "Say what the request tells about the clients and the training. Where it does not say something, answer unknown.",
)


class ClientUpdateSignature(dspy.Signature):
    """Pick one of the candidates, and explain the choice in two sentences. Use only numbers that are given."""

    situation: FederatedSituation = dspy.InputField()
    candidates: list[FederatedConfiguration] = dspy.InputField(desc="measured, equally good within their error")
    expected: str = dspy.InputField(desc="what the best of them is expected to reach")
    configuration: FederatedConfiguration = dspy.OutputField(desc="one of the candidates, unchanged")
    explanation: str = dspy.OutputField()
