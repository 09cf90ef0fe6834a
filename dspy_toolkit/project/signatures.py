"""Signatures: reading one from a line of text, and what fields a program has.

Covered: the text form, `text: str -> label: Literal["a", "b"]`, checked until every fault is one sentence; the typed
fields of a program over all its predictors; a hash of them that optimizing a program does not change.

Not covered: types of the user's own in the text form. A program whose fields hold pydantic models is written in Python.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.project.annotations import read_type
from dspy_toolkit.store import digest
from dspy_toolkit.user_sources import PREFIX

if TYPE_CHECKING:
    import dspy
    from pydantic.fields import FieldInfo

# Keywords that `dspy.Predict` takes for itself before it looks at the inputs.
_TAKEN = {"signature", "new_signature", "demos", "config", "lm"}


def fields_of(program: dspy.Module) -> dict[str, Any]:
    """Field name → type, over all predictors of `program`.

    Where predictors share a name, an output's type counts before an input's and a written type before the default
    `str`. Constraints stay: `Annotated[int, Ge(0)]`.
    """
    found: dict[str, tuple[int, Any]] = {}
    for _, signature in _signatures(program):
        outputs = signature.output_fields
        for name, field in signature.fields.items():
            weight = 2 * (not _is_untyped(field)) + (name in outputs)
            if name not in found or weight > found[name][0]:
                found[name] = weight, _annotation(field)
    return {name: annotation for name, (_, annotation) in found.items()}


def signature_hash(program: dspy.Module) -> str:
    """sha256 over each predictor's name and its fields' names, roles and types, in order.

    Instructions, prefixes and descriptions are left out: an optimizer writes them, and a state saved before still fits.
    """
    shape = []
    for name, signature in _signatures(program):
        roles = (signature.input_fields, signature.output_fields)
        shape.append([name, *([[key, schema_of(_annotation(field))] for key, field in side.items()] for side in roles)])
    return digest(shape)


def _signatures(program: dspy.Module) -> Iterator[tuple[str, type[dspy.Signature]]]:
    for name, predictor in program.named_predictors():
        yield name, cast("type[dspy.Signature]", predictor.signature)


def schema_of(annotation: Any) -> Any:
    """A type as JSON, the same in every process: its JSON schema, or its name where it has none."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation).json_schema()
    except PydanticUserError:
        name = annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)
        # A type of a user's file carries the module name that was made from the file's path.
        return re.sub(rf"{PREFIX}(\w+)_[0-9a-f]{{12}}\b", r"\1", name)


def parse_signature(text: str, instructions: str | None = None) -> type[dspy.Signature]:
    """Make a signature from its text form.

    Args:
        text: `inputs -> outputs`, each side `name: type, …`; a type may be left out (`str`).
        instructions: what to do, for the model; DSPy's "Given the fields …" by default.

    Raises:
        ProjectError: the text cannot be read, or names a type or field that cannot be used.
    """
    import dspy
    from pydantic.errors import PydanticUserError

    where = f"signature {text!r}"
    sides = text.split("->")
    if len(sides) != 2:
        raise ProjectError(f'{where} has {len(sides) - 1} "->". Write it as "text: str -> label: bool".')
    inputs, outputs = (_read_side(side, where) for side in sides)
    names = [field.arg for field in (*inputs, *outputs)]
    for index, name in enumerate(names):
        if names.count(name) > 1:
            raise ProjectError(f"{where} has the field {name!r} twice. Rename one.")
        if hasattr(dspy.Signature, name) or name.startswith("_") or (name in _TAKEN and index < len(inputs)):
            raise ProjectError(f"{where}: DSPy keeps the name {name!r} for itself. Rename the field and its column.")
    try:
        fields: dict[str, tuple[Any, Any]] = {
            field.arg: (_type_of(field), dspy.InputField(IS_TYPE_UNDEFINED=field.annotation is None))
            for field in inputs
        }
        fields |= {field.arg: (_type_of(field), dspy.OutputField()) for field in outputs}
        return dspy.make_signature(fields, instructions)
    except (TypeError, ValueError, RecursionError, PydanticUserError) as error:
        raise ProjectError(f"{where} cannot be used: {str(error).splitlines()[0].rstrip('.')}. Correct it.") from error


def _read_side(side: str, where: str) -> list[ast.arg]:
    """The fields of one side of the arrow."""
    side = side.strip()
    if not side:
        raise ProjectError(f'{where} has nothing on one side. Write it as "text: str -> label: bool".')
    try:
        body = ast.parse(f"def f({side}): pass").body
    except (SyntaxError, ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ProjectError(f'{where}: {side!r} is not "name: type, …" ({reason}).') from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise ProjectError(f'{where}: {side!r} is not "name: type, …".')
    arguments = body[0].args
    if arguments.defaults or arguments.posonlyargs or arguments.vararg or arguments.kwarg or arguments.kwonlyargs:
        raise ProjectError(f'{where}: {side!r} is not "name: type, …" (a default, a star or a slash is in it).')
    return arguments.args


def _type_of(field: ast.arg) -> Any:
    return str if field.annotation is None else read_type(field.annotation)


def _is_untyped(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("IS_TYPE_UNDEFINED"))


def _annotation(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
