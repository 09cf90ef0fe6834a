"""The parts of a program's saved state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def predictor_states(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Predictor's name → its part of a saved state; the name is empty where the program is one predictor."""
    if isinstance(state.get("demos"), list):
        return {"": dict(state)}
    return {name: part for name, part in state.items() if isinstance(part, dict) and "signature" in part}


def prompts_of(part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A predictor's part of a state, and those of the members of its ensemble: all that has demonstrations and levers."""
    yield dict(part)
    yield from (part.get("ensemble") or {}).get("members") or ()


def renamed(state: Any, renames: Mapping[str, str]) -> Any:
    """A copy of a saved state without language models, whose demonstrations and label rules have today's field names.

    Args:
        renames: old field name → new.
    """
    if not isinstance(state, dict):
        return state
    made = {key: renamed(part, renames) for key, part in state.items()}
    if isinstance(made.get("demos"), list):
        if "signature" in made:  # a member of an ensemble has none
            made["lm"] = None
        made["demos"] = [{renames.get(key, key): value for key, value in demo.items()} for demo in made["demos"]]
        if isinstance(made.get("labels"), dict):
            made["labels"] = {renames.get(key, key): rule for key, rule in made["labels"].items()}
        if isinstance(made.get("ensemble"), dict):
            made["ensemble"]["members"] = [renamed(each, renames) for each in made["ensemble"]["members"]]
        if renames and made.get("neighbors"):
            before = made["neighbors"].get("fields", {})
            now = {old: renames.get(name, name) for old, name in before.items()}
            made["neighbors"] = {**made["neighbors"], "fields": {**renames, **now}}
    return made


def levers_in_words(part: Mapping[str, Any]) -> list[str]:
    """What one predictor has beside its instruction and demonstrations, for people. Args: part: of `predictor_states`."""
    if together := part.get("ensemble"):
        each = "; ".join(", ".join(levers_in_words(member)) or "no lever" for member in together["members"])
        return [f"the {together['rule']} of {len(together['members'])} prompts ({each}), of which this is the first"]
    said = [f"format {part['format']}"] if part.get("format") else []
    for output, rule in (part.get("labels") or {}).items():
        fitted = f"{rule['method']} fitted to {rule['rows']} rows" if rule.get("method") else "the model's own scores"
        said.append(f"{output} chosen by {fitted}")
    if near := part.get("neighbors"):
        said.append(f"the {near['count']} nearest of {near['of']} training rows by {near['unit']} as demonstrations")
    return said + ([f"adapter {part['adapter'][:12]}"] if part.get("adapter") else [])
