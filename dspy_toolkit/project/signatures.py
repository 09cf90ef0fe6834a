"""Signatures: reading one from a line of text, what fields a program has, and names for those that programs share.

Covered: the text form, `text: str -> label: Literal["a", "b"]`, checked until every fault is one sentence; the typed
fields of a program over all its predictors; a hash of them that optimizing a program does not change; a table of named
signatures, filled at run time.

Not covered: types of the user's own in the text form. A program whose fields hold pydantic models is written in Python.
"""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, cast

from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import digest
from dspy_toolkit.user_code import PREFIX

if TYPE_CHECKING:
    import dspy
    from pydantic.fields import FieldInfo

_TYPES = {
    *typing.__all__,
    "int",
    "str",
    "float",
    "bool",
    "list",
    "tuple",
    "dict",
    "set",
    "frozenset",
    "bytes",
    "complex",
    "None",
}
# Keywords that `dspy.Predict` takes for itself before it looks at the inputs.
_TAKEN = {"signature", "new_signature", "demos", "config", "lm"}

_registered: dict[str, type[dspy.Signature]] = {}


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
    inputs, outputs = (_names_of(side, where) for side in sides)
    for name in [*inputs, *outputs]:
        if [*inputs, *outputs].count(name) > 1:
            raise ProjectError(f"{where} has the field {name!r} twice. Rename one.")
        if hasattr(dspy.Signature, name) or name.startswith("_") or (name in _TAKEN and name in inputs):
            raise ProjectError(f"{where}: DSPy keeps the name {name!r} for itself. Rename the field and its column.")
    try:
        # With `custom_types` given, DSPy does not search the callers' variables for types.
        made = dspy.Signature(text, instructions, custom_types={})  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError, AttributeError, PydanticUserError) as error:
        raise ProjectError(f"{where} cannot be used: {str(error).splitlines()[0].rstrip('.')}. Correct it.") from error
    return cast("type[dspy.Signature]", made)


def _names_of(side: str, where: str) -> list[str]:
    """The field names of one side of the arrow, its types checked."""
    side = side.strip()
    if not side:
        raise ProjectError(f'{where} has nothing on one side. Write it as "text: str -> label: bool".')
    try:
        body = ast.parse(f"def f({side}): pass").body
    except SyntaxError as error:
        raise ProjectError(f'{where}: {side!r} is not "name: type, …" ({error.msg}).') from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise ProjectError(f'{where}: {side!r} is not "name: type, …".')
    arguments = body[0].args
    if arguments.defaults or arguments.posonlyargs or arguments.vararg or arguments.kwarg or arguments.kwonlyargs:
        raise ProjectError(f'{where}: {side!r} is not "name: type, …" (a default, a star or a slash is in it).')
    for field in arguments.args:
        modules = {id(node.value) for node in ast.walk(field) if isinstance(node, ast.Attribute)}
        for node in ast.walk(field):
            # DSPy takes an unknown name for a module, and imports it.
            if isinstance(node, ast.Name) and id(node) not in modules and node.id not in _TYPES:
                hint = nearest(node.id, _TYPES) if get_close_matches(node.id, _TYPES) else ""
                raise ProjectError(f"{where}: there is no type {node.id}.{hint} The words of a Literal need quotes.")
    return [field.arg for field in arguments.args]


def register(name: str, signature: type[dspy.Signature]) -> None:
    """Give `signature` a name; a later one of the same name takes its place.

    Raises:
        ProjectError: it is not a subclass of `dspy.Signature`, or has no input or no output.
    """
    import dspy

    if not (isinstance(signature, type) and issubclass(signature, dspy.Signature)):
        raise ProjectError(f"signature {name!r} is {signature!r}. Register a subclass of dspy.Signature.")
    if not signature.input_fields or not signature.output_fields:
        raise ProjectError(f"signature {name!r} is {signature.signature!r}. It needs an input and an output.")
    _registered[name] = signature


def get(name: str) -> type[dspy.Signature]:
    """The signature registered as `name`. Raises ProjectError, with the nearest names, when there is none."""
    if name not in _registered:
        raise ProjectError(f"No signature is registered as {name!r}.{nearest(name, _registered)}")
    return _registered[name]


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_registered)


def _is_untyped(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("IS_TYPE_UNDEFINED"))


def _annotation(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
