"""The signatures of fine-tuning adapters."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.signature import reading_signature
from dspy_toolkit.projects.lora.situation import LoRAConfiguration, LoRASituation

LoRAOptimizationSignature = reading_signature(
    "LoRAOptimizationSignature",
    LoRASituation,
    "Say what the request tells about the texts, the model, the machine and the time. Where it does not say something, answer unknown.",
)


class LoRATrainingSignature(dspy.Signature):
    """Pick one of the candidates, and explain the choice in two sentences. Use only numbers that are given."""

    situation: LoRASituation = dspy.InputField()
    candidates: list[LoRAConfiguration] = dspy.InputField(desc="measured, equally good within their error")
    expected: str = dspy.InputField(desc="what the best of them is expected to reach")
    configuration: LoRAConfiguration = dspy.OutputField(desc="one of the candidates, unchanged")
    explanation: str = dspy.OutputField()
