"""The types of a program's inputs and outputs, as they are checked and described at the HTTP edge.

The inputs are those of the project's dataset, with the types and descriptions that the program's signatures give them; an
input that nobody knows is refused, since DSPy takes some keywords (`lm`, `demos`, …) for itself. Outputs are described, and
not checked again.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.registry.programs import LoadedProgram

PRIVILEGED = frozenset({"signature", "new_signature", "demos", "config", "lm", "prediction"})
"""Keywords that `dspy.Predict` takes for itself before it looks at the inputs."""
EVIDENCE: dict[str, Any] = {
    "probabilities": NotRequired[Annotated[dict[str, float], Field(description="Of each label; they sum to 1.")]],
    "confidence": NotRequired[Annotated[float, Field(description="The probability of the label that was taken.")]],
    "abstained": NotRequired[
        Annotated[bool, Field(description="Whether the confidence is below what the project asks of an answer.")]
    ],
}
"""What a prediction has beside its outputs where a choice's labels were scored."""


@dataclass(frozen=True)
class ProgramFields:
    """What goes in and what comes out."""

    inputs: TypeAdapter[dict[str, Any]]
    outputs: TypeAdapter[dict[str, Any]]
    input_names: tuple[str, ...]
    output_types: Mapping[str, Any]
    """Of the outputs that feedback can correct: those of the dataset, else of the last predictor."""
    example: dict[str, Any]
    """Made-up inputs that fit."""


def program_fields(loaded: LoadedProgram) -> ProgramFields:
    """The fields of a loaded program.

    Raises:
        ProgramError: an input has a name that DSPy takes for itself.
    """
    name, names = loaded.project.name, loaded.project.dataset.inputs
    if taken := sorted(PRIVILEGED.intersection(names)):
        raise ProgramError(
            f"{name} has an input called {taken[0]}, which DSPy takes for itself; whoever calls the program could change it. "
            "Rename the field."
        )
    found, about = fields_of(loaded.program), dict(_descriptions(loaded))
    predictors = loaded.program.predictors()
    outputs = {key: found.get(key, Any) for key in signature_of(predictors[-1]).output_fields}
    outputs |= {key: found.get(key, Any) for key in loaded.project.dataset.outputs}
    # Of a module with code of its own nobody knows what it returns.
    alone = loaded.program is predictors[0]
    title = "".join(part.capitalize() for part in name.replace("_", "-").split("-"))
    ins: dict[str, Any] = {key: Annotated[found.get(key, Any), Field(description=about.get(key))] for key in names}
    outs: dict[str, Any] = {
        key: (lambda kind: kind if alone else NotRequired[kind])(Annotated[kind, Field(description=about.get(key))])
        for key, kind in outputs.items()
    }
    # Typed dictionaries: a model would take some names of fields, such as `schema`, for its own.
    make: Any = TypedDict
    given, made = make(f"{title}Inputs", ins), make(f"{title}Prediction", {**EVIDENCE, **outs})
    given.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    made.__pydantic_config__ = ConfigDict(extra="allow")
    corrected = {key: outputs[key] for key in (loaded.project.dataset.outputs or outputs)}
    return ProgramFields(
        inputs=TypeAdapter(given),
        outputs=TypeAdapter(made),
        input_names=tuple(names),
        output_types=corrected,
        example={key: example_of(found.get(key, Any), key) for key in names},
    )


def _descriptions(loaded: LoadedProgram) -> Iterator[tuple[str, str]]:
    for predictor in loaded.program.predictors():
        for name, field in signature_of(predictor).fields.items():
            extra = field.json_schema_extra
            said = extra.get("desc") if isinstance(extra, dict) else None
            if said and said != f"${{{name}}}":  # DSPy's own, which says nothing
                yield name, str(said)


def signature_of(predictor: Any) -> type[dspy.Signature]:
    """Of a predictor; DSPy's own type says that it may be none."""
    return predictor.signature


def example_of(annotation: Any, name: str) -> Any:
    """A value that JSON knows and that fits a type, as far as one can be made up; a text says what it stands for."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:], name)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return example_of(next(part for part in arguments if part is not type(None)), name)
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        return members[0].value
    plain: dict[Any, Any] = {str: f"an example of {name.replace('_', ' ')}", int: 1, float: 0.5, bool: True, list: []}
    if annotation in plain:
        return plain[annotation]
    if origin in (list, set, tuple):
        return [example_of(arguments[0], name)] if arguments else []
    if origin is dict or annotation is dict:
        return {}
    fields = getattr(annotation, "model_fields", None)
    if fields:
        return {key: example_of(_whole(field), key) for key, field in fields.items() if field.is_required()}
    return f"an example of {name.replace('_', ' ')}"


def _whole(field: Any) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _bounded(kind: Any, limits: tuple[Any, ...], name: str) -> Any:
    value = example_of(kind, name)
    for limit in limits:
        for bound in (getattr(limit, "metadata", None) or [limit]) if not isinstance(limit, str) else []:
            if isinstance(value, int | float) and not isinstance(value, bool):
                low, high = getattr(bound, "ge", None), getattr(bound, "le", None)
                above, below = getattr(bound, "gt", None), getattr(bound, "lt", None)
                value = max(value, low) if low is not None else value
                value = min(value, high) if high is not None else value
                value = above + 1 if above is not None and value <= above else value
                value = below - 1 if below is not None and value >= below else value
            elif isinstance(value, str):
                least, most = getattr(bound, "min_length", None), getattr(bound, "max_length", None)
                value = value.ljust(least, ".") if least else value
                value = value[:most] if most else value
    return value


def characters(value: Any) -> int:
    """Of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + characters(part) for key, part in value.items())
    if isinstance(value, list | tuple | set):
        return sum(characters(part) for part in value)
    return 0
