"""The signatures of the router."""

from __future__ import annotations

from typing import Literal

import dspy

ProjectLabel = Literal["lora", "diffusion", "clip", "federated", "compression", "meta-learning"]


class RouteRequest(dspy.Signature):
    """Name the project of the toolkit that handles the request.

    - lora: teach a language model a style, a tone or a subject by fine-tuning small adapters
    - diffusion: make or edit pictures with a diffusion model
    - clip: search pictures by words, and match images with text
    - federated: train together on many devices or sites without sharing the data
    - compression: make a trained model smaller, faster and cheaper to run
    - meta-learning: learn a new task from only a few examples
    """

    request: str = dspy.InputField(desc="what a user asks, in the user's own words")
    project: ProjectLabel = dspy.OutputField()
