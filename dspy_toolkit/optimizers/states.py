"""A program's state as JSON, the part of it that reaches the model, and loading a state into a program."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from dspy_toolkit.lm.levers import clear, levers_of
from dspy_toolkit.project.states import predictor_states
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    import dspy

MARKS = ("augmented", "dspy_uuid", "dspy_split")
"""Entries of a demonstration that DSPy uses internally, and puts into no prompt."""


def prompt_of(program: dspy.Module) -> bytes:
    """The part of a program that reaches the model: instructions, fields and demonstrations, as canonical JSON."""
    parts = {}
    for name, predictor in program.named_predictors():
        state = _plain(predictor.dump_state())
        demos = [{key: value for key, value in demo.items() if key not in MARKS} for demo in state["demos"]]
        parts[name] = {"signature": state["signature"], "fields": state.get("fields", {}), "demos": demos}
        parts[name] |= levers_of(predictor)
    return canonical_json(parts)


def state_of(program: dspy.Module) -> dict[str, Any]:
    """A program's state (`dump_state`) as plain JSON, with each predictor's levers and without the language model it last ran on."""
    state = _plain(program.dump_state())
    levers = {name: levers_of(predictor) for name, predictor in program.named_predictors()}
    for name in predictor_states(state):
        # Where one predictor is the whole program, the state is that predictor's, not a dictionary of them.
        own = state[name] if name else state
        own["lm"] = None
        own.update(levers.get(name or "self", {}))
    return state


def fill(program: dspy.Module, state: dict[str, Any]) -> dspy.Module:
    """Load `state` into `program` and return it. A language model that the program sets itself is kept."""
    own = {name: predictor.lm for name, predictor in program.named_predictors()}
    for _, predictor in program.named_predictors():
        clear(predictor)
    program.load_state(state)
    for name, predictor in program.named_predictors():
        predictor.lm = own[name]
    return program


def signature_of(predictor: dspy.Predict) -> type[dspy.Signature]:
    """A predictor's signature, with the type that DSPy's annotations leave out."""
    return cast("type[dspy.Signature]", predictor.signature)


def _plain(state: Any) -> Any:
    return json.loads(json.dumps(state, default=_as_json))


def _as_json(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "items"):
        return dict(value.items())
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
