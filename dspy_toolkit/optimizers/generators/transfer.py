"""Starting a search from another program: which of its parts fit.

Transferred are the instructions, the demonstrations and the levers (format, label weights, adapter) of each predictor whose input and output fields have the names
of one here: the predictor of the same name where its fields fit, else the only one whose fields do. `reasoning`, which
`dspy.ChainOfThought` adds, is ignored in the comparison. A demonstration keeps the fields of the signature here; one
that lacks a field, or holds a value that does not fit its type, is left out.

Not covered: whether what was transferred helps (it is scored as one more candidate), and descriptions of fields, which
stay those of the program here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DatasetError, ProjectError
from dspy_toolkit.lm.levers import levers_of, pull
from dspy_toolkit.optimizers.states import signature_of, state_of
from dspy_toolkit.project.signatures import fields_of, signature_hash

if TYPE_CHECKING:
    import dspy


log = logging.getLogger(__name__)

ADDED = "reasoning"
"""The output that `dspy.ChainOfThought` adds to a signature."""

Shape = tuple[frozenset[str], frozenset[str]]


def transfer(
    program: dspy.Module, other: dspy.Module, source: str, renames: Mapping[str, str] | None = None
) -> dspy.Module:
    """A copy of `program` with the instructions and demonstrations of `other`, where the fields fit.

    Args:
        program: not changed.
        other: any program; not changed.
        source: what to call `other` in messages.
        renames: old field name → the name here, for fields of `other` that still have the old one.

    Raises:
        ProjectError: no predictor of `other` fits; the fields of both sides are listed.
    """
    renames = renames or {}
    theirs = {name: _shape(predictor, renames) for name, predictor in other.named_predictors()}
    predictors = dict(other.named_predictors())
    carried = program.deepcopy()
    fitting = 0
    for name, predictor in carried.named_predictors():
        if (match := _match(name, _shape(predictor, {}), theirs)) is None:
            continue
        fitting += 1
        taken = predictors[match]
        predictor.signature = signature_of(predictor).with_instructions(signature_of(taken).instructions)
        pull(predictor, **{"format": None, **_fitting_levers(taken, predictor)})
        demos = state_of(taken)["demos"]  # plain JSON, whether loaded or made in this process
        predictor.demos = [fit for demo in demos if (fit := _fitted(demo, predictor, renames)) is not None]
        if lost := len(demos) - len(predictor.demos):
            log.warning("%d of %d demonstrations of %s do not fit the fields here.", lost, len(demos), source)
    if not fitting:
        raise ProjectError(
            f"No predictor of {source} fits this program. Its fields: {_listed(other, renames)}; here: "
            f"{_listed(program, {})}. Start from another program, or note renamed fields in Project.renames."
        )
    return carried


def _fitting_levers(taken: dspy.Predict, predictor: dspy.Predict) -> dict[str, Any]:
    """Of the levers of `taken`, those that mean the same here: all where the fields have the same types, else the format."""
    levers = levers_of(taken)
    if signature_hash(taken) == signature_hash(predictor):
        return levers
    return {name: value for name, value in levers.items() if name == "format"}


def _shape(predictor: dspy.Predict, renames: Mapping[str, str]) -> Shape:
    signature = signature_of(predictor)
    inputs, outputs = (
        frozenset(renames.get(name, name) for name in side)
        for side in (signature.input_fields, signature.output_fields)
    )
    return inputs, outputs - {ADDED} or outputs


def _match(name: str, shape: Shape, theirs: Mapping[str, Shape]) -> str | None:
    """The predictor to take from: of the same name, else the only one; None when there is none, or several."""
    if theirs.get(name) == shape:
        return name
    fitting = [other for other, its in theirs.items() if its == shape]
    return fitting[0] if len(fitting) == 1 else None


def _fitted(demo: Mapping[str, Any], predictor: dspy.Predict, renames: Mapping[str, str]) -> dict[str, Any] | None:
    """A demonstration with the fields of the signature alone; None when one is missing or does not fit its type."""
    from pydantic import ValidationError

    from dspy_toolkit.datasets.checking import validator_of

    values = {renames.get(name, name): value for name, value in demo.items()}
    kept: dict[str, Any] = {}
    for name, kind in fields_of(predictor).items():
        if name not in values:
            if name == ADDED:  # an answer without reasoning is a demonstration too
                continue
            return None
        try:
            validator_of(kind, name).validate_python(values[name])
        except (ValidationError, DatasetError):  # DatasetError: a type that JSON cannot hold
            return None
        kept[name] = values[name]
    return kept


def _listed(program: dspy.Module, renames: Mapping[str, str]) -> str:
    shown = []
    for _, predictor in program.named_predictors():
        signature = signature_of(predictor)
        sides = (signature.input_fields, signature.output_fields)
        shown.append(" -> ".join(", ".join(renames.get(name, name) for name in side) for side in sides))
    return "; ".join(dict.fromkeys(shown))
