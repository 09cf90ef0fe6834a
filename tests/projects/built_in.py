"""The four advisors."""

from __future__ import annotations

from dspy_toolkit.advising import Advisor
from dspy_toolkit.projects.clip.advisor import advisor as clip
from dspy_toolkit.projects.diffusion.advisor import advisor as diffusion
from dspy_toolkit.projects.federated.advisor import advisor as federated
from dspy_toolkit.projects.lora.advisor import advisor as lora

ADVISORS: dict[str, Advisor] = {"lora": lora, "diffusion": diffusion, "clip": clip, "federated": federated}
