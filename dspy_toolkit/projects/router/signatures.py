"""The signatures of the router."""

from __future__ import annotations

from typing import Literal

import dspy

ProjectLabel = Literal["lora", "diffusion", "clip", "federated", "compression", "meta-learning"]


class RouteRequest(dspy.Signature):
    """Name the project of the toolkit that handles the request."""

    request: str = dspy.InputField(desc="what a user asks, in the user's own words")
    project: ProjectLabel = dspy.OutputField()
