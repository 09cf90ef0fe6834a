"""Signatures made of a situation: one choice for each field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.advising.situation import Situation


def reading_signature(name: str, situation: type[Situation], instructions: str) -> type[dspy.Signature]:
    """A signature `request` → the fields of `situation`, each with its levels as a choice and its description.

    Args:
        name: of the class.
        instructions: what to do, for the model.
    """
    import dspy

    fields: dict[str, Any] = {
        "request": (str, dspy.InputField(desc="what somebody has and wants, in their own words")),
    }
    for key, field in situation.model_fields.items():
        fields[key] = (field.annotation, dspy.OutputField(desc=field.description or key))
    made: Any = dspy.Signature(fields, instructions, signature_name=name)  # pyright: ignore[reportCallIssue]
    made.__module__ = situation.__module__
    return made
