"""Instructions, demonstrations and formats of two programs of one project, side by side.

Covered: reading them from saved states. Not covered: the text that a format puts around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dspy_toolkit.optimizers.states import MARKS
from dspy_toolkit.project.states import levers_in_words, predictor_states
from dspy_toolkit.report.words import Field, readable, shown


class Demonstration(NamedTuple):
    """One example in a prompt."""

    fields: tuple[Field, ...]
    by_model: bool
    """Bootstrapped: answered by a model and scored as right; else the row's own label."""


class Prompt(NamedTuple):
    """The prompt of one predictor."""

    instructions: str
    demonstrations: tuple[Demonstration, ...]
    levers: str
    """Its format, label weights, chosen demonstrations and adapter; empty where it has none."""


class Predictor(NamedTuple):
    """One predictor, before and after."""

    name: str
    """Empty where the program is one predictor."""
    before: Prompt | None
    """None when the program before cannot be read."""
    after: Prompt
    same: bool


def predictors(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], order: Mapping[str, Sequence[str]]
) -> tuple[Predictor, ...]:
    """Both sides of every predictor of `after`.

    Args:
        before: the state of the program that `after` was compared with; None when it cannot be read.
        after: the compiled program's state.
        order: predictor → its fields, inputs first: saved demonstrations are sorted by name.
    """
    old = predictor_states(before) if before is not None else {}
    found = []
    for name, state in predictor_states(after).items():
        fields = order.get(name, ())
        now, then = _prompt(state, fields), _prompt(old[name], fields) if name in old else None
        found.append(Predictor(name, then, now, then == now))
    return tuple(found)


def _prompt(state: Mapping[str, Any], order: Sequence[str]) -> Prompt:
    demos = tuple(_demonstration(demo, order) for demo in state.get("demos") or [])
    instructions = readable(str(state["signature"].get("instructions") or ""))
    return Prompt(instructions, demos, readable(", ".join(levers_in_words(state))))


def _demonstration(demo: Mapping[str, Any], order: Sequence[str]) -> Demonstration:
    places = {name: place for place, name in enumerate(order)}
    names = sorted((name for name in demo if name not in MARKS), key=lambda name: places.get(name, len(places)))
    return Demonstration(tuple(Field(readable(name), shown(demo[name])) for name in names), bool(demo.get("augmented")))
