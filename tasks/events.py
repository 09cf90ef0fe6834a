"""What a flow reports for others to act on: an event of Prefect's, from which automations make an alert.

Every event says what happened, where to look, and what to type.
"""

from __future__ import annotations

from prefect.events import emit_event

KINDS = {
    "promoted": "A program was promoted.",
    "rolled-back": "A program was rolled back by itself.",
    "regression": "A live program does worse than when it was promoted.",
    "drift": "What a live program is asked differs from what it was chosen on.",
    "not-reproduced": "A live program answers rows otherwise than when it was promoted.",
    "engine-slow": "The engine is slower than it used to be on this machine.",
    "throttled": "This machine runs slower to stay cool.",
    "disk-low": "The home's disk is nearly full.",
}


def event_name(kind: str) -> str:
    """As Prefect knows it."""
    return f"dspy-toolkit.{kind}"


def tell(kind: str, about: str, message: str, *, look: str, command: str) -> None:
    """Report that something happened.

    Args:
        kind: one of KINDS.
        about: the program, or the machine.
        message: one or two sentences for people.
        look: a page or a file.
        command: what to type.
    """
    emit_event(
        event=event_name(kind),
        resource={"prefect.resource.id": f"dspy-toolkit.{about}", "prefect.resource.name": about},
        payload={"about": about, "message": message, "look": look, "command": command},
    )
