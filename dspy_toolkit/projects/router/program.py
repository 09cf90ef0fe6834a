"""The router's program: one prediction."""

from __future__ import annotations

import dspy

from dspy_toolkit.projects.router.signatures import RouteRequest


def make_program() -> dspy.Module:
    """A fresh, unoptimized router."""
    return dspy.Predict(RouteRequest)
