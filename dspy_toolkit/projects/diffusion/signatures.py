"""The signatures of sampling diffusion models."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.signature import reading_signature
from dspy_toolkit.projects.diffusion.situation import DiffusionConfiguration, DiffusionSituation

DiffusionOptimizationSignature = reading_signature(
    "DiffusionOptimizationSignature",
    DiffusionSituation,
    "Say what the request tells about the images, the model and the waiting. Where it does not say something, answer unknown.",
)


class SamplingScheduleSignature(dspy.Signature):
    """Pick one of the candidates, and explain the choice in two sentences. Use only numbers that are given."""

    situation: DiffusionSituation = dspy.InputField()
    candidates: list[DiffusionConfiguration] = dspy.InputField(desc="measured, equally good within their error")
    expected: str = dspy.InputField(desc="what the best of them is expected to reach")
    configuration: DiffusionConfiguration = dspy.OutputField(desc="one of the candidates, unchanged")
    explanation: str = dspy.OutputField()
