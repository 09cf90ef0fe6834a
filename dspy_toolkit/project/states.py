"""The parts of a program's saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def predictor_states(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Predictor's name → its part of a saved state; the name is empty where the program is one predictor."""
    if isinstance(state.get("demos"), list):
        return {"": dict(state)}
    return {name: part for name, part in state.items() if isinstance(part, dict) and "signature" in part}


def renamed(state: Any, renames: Mapping[str, str]) -> Any:
    """A copy of a saved state without language models, whose demonstrations and label rules have today's field names.

    Args:
        renames: old field name → new.
    """
    if not isinstance(state, dict):
        return state
    made = {key: renamed(part, renames) for key, part in state.items()}
    if isinstance(made.get("demos"), list):
        made["lm"] = None
        made["demos"] = [{renames.get(key, key): value for key, value in demo.items()} for demo in made["demos"]]
        if isinstance(made.get("labels"), dict):
            made["labels"] = {renames.get(key, key): rule for key, rule in made["labels"].items()}
    return made


def levers_in_words(part: Mapping[str, Any]) -> list[str]:
    """What one predictor has beside its instruction and demonstrations, for people. Args: part: of `predictor_states`."""
    said = [f"format {part['format']}"] if part.get("format") else []
    for output, rule in (part.get("labels") or {}).items():
        fitted = f"{rule['method']} fitted to {rule['rows']} rows" if rule.get("method") else "the model's own scores"
        said.append(f"{output} chosen by {fitted}")
    return said + ([f"adapter {part['adapter'][:12]}"] if part.get("adapter") else [])
