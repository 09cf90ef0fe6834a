"""The parts of a program's saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def predictor_states(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Predictor's name → its part of a saved state; the name is empty where the program is one predictor."""
    if isinstance(state.get("demos"), list):
        return {"": dict(state)}
    return {name: part for name, part in state.items() if isinstance(part, dict) and "signature" in part}
