"""The signatures of adapting CLIP."""

from __future__ import annotations

import dspy

from dspy_toolkit.advising.signature import reading_signature
from dspy_toolkit.projects.clip.situation import CLIPConfiguration, CLIPSituation

CLIPDomainAdaptationSignature = reading_signature(
    "CLIPDomainAdaptationSignature",
    CLIPSituation,
    "Say what the request tells about the pictures, the pairs and what must be kept. Where it does not say something, answer unknown.",
)


class ContrastiveLossSignature(dspy.Signature):
    """Pick one of the candidates, and explain the choice in two sentences. Use only numbers that are given."""

    situation: CLIPSituation = dspy.InputField()
    candidates: list[CLIPConfiguration] = dspy.InputField(desc="measured, equally good within their error")
    expected: str = dspy.InputField(desc="what the best of them is expected to reach")
    configuration: CLIPConfiguration = dspy.OutputField(desc="one of the candidates, unchanged")
    explanation: str = dspy.OutputField()
