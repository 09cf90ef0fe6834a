"""Which model does which work: the task, reflection, teaching, judging; each with an address, a key and options of its own.

A key belongs to the section that it is written in, and goes to that section's model at its address alone. A role without a
model of its own is the task's model at the task's address, with the task's key; one that names another model, or another
address, takes none of these over.

Covered: what the settings say of each role. Not covered: connecting (`dspy_toolkit.lm.connection`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from dspy_toolkit.settings import Settings

Role = Literal["lm", "reflection", "teacher", "judge"]
"""The section of the settings that describes the role's model; `lm` is the task's."""
OPTIONS = ("temperature", "max_tokens", "timeout")


@dataclass(frozen=True)
class RoleModel:
    """A role's model, as the settings describe it."""

    role: Role
    model: str
    api_base: str | None
    api_key: SecretStr | None
    temperature: float
    max_tokens: int
    timeout: float
    stated: frozenset[str]
    """Those of OPTIONS that somebody wrote down; the others are defaults, and give way to what the model allows."""


def role_model(settings: Settings, role: Role, model: str | None = None) -> RoleModel:
    """What the settings say of a role.

    Args:
        model: in place of the section's: one that a metric `judge` names. It has the key and the address of a section only
            if that section is about the same model.
    """
    section, task = getattr(settings, role), settings.lm
    name = model or section.model or task.model
    own = name == (section.model or task.model)
    address, key = (section.api_base, section.api_key) if own else (None, None)
    if name == task.model:
        address = address or task.api_base
        key = key or (task.api_key if address == task.api_base else None)
    options = {option: getattr(section, option) for option in OPTIONS}
    stated = section.model_fields_set.intersection(OPTIONS)
    if "timeout" not in stated:
        options["timeout"] = task.timeout
    if role == "teacher" and name == task.model:
        # Another way of asking one and the same model would be asked anew, and cached apart.
        options |= {option: getattr(task, option) for option in OPTIONS if option not in stated}
        stated |= task.model_fields_set.intersection(OPTIONS)
    return RoleModel(role, name, address, key, **options, stated=frozenset(stated))
