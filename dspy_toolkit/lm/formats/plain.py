"""`plain`: the instruction as system turn, the input as user turn, and nothing but the value as reply.

Several inputs, or several outputs, are lines `name: value`. A small model pays for every word of a format that the grammar makes
superfluous anyway: with the least words it is cheaper to run and to train, and more often right (docs/levers.md).
"""

from __future__ import annotations

import inspect
import json
from typing import Any, ClassVar

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.utils import apply_output_field_defaults, parse_value
from dspy.utils.exceptions import AdapterParseError
from pydantic import TypeAdapter

from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.formats.base import Format, input_text, written
from dspy_toolkit.lm.formats.marked import Mark, marked_grammar
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader, MarkedReader
from dspy_toolkit.lm.grammar import is_text, value_rule


class PlainFormat(Format, ChatAdapter):
    """The least that can be said."""

    name: ClassVar[FormatName] = "plain"

    @classmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """See `Format`."""
        return marked_grammar(signature, _marks(signature), _text_pattern, value_rule)

    @classmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader:
        """See `Format`."""
        return MarkedReader(_marks(signature))

    @classmethod
    def around(cls, signature: type[dspy.Signature], name: str) -> tuple[str, str]:
        """See `Format`."""
        return next((mark.before, mark.after) for mark in _marks(signature) if mark.name == name)

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instruction, and what the outputs are."""
        parts = [inspect.cleandoc(signature.instructions), _inputs(signature), _outputs(signature)]
        return "\n\n".join(part for part in parts if part)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """The input's value, or a line for each input."""
        fields = signature.input_fields
        said = {name: input_text(field, inputs[name]) for name, field in fields.items() if name in inputs}
        alone = len(fields) == 1 and all(value.strip() for value in said.values())
        lines = said.values() if alone else [f"{name}: {value}" for name, value in said.items()]
        return "\n\n".join(part for part in (prefix, "\n".join(lines), suffix) if part).strip()

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: Any = None
    ) -> str:
        """The reply that would have been right."""
        fields = signature.output_fields
        said = {
            name: written(field.annotation, outputs.get(name, missing_field_message)) for name, field in fields.items()
        }
        return (
            next(iter(said.values())) if len(said) == 1 else "\n".join(f"{name}: {text}" for name, text in said.items())
        )

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """See DSPy's `Adapter.parse`."""
        texts: dict[str, str] = {}
        rest = completion.strip()
        for name, before, after in _marks(signature):
            if before and not rest.startswith(before.strip()):
                continue
            value, mark, following = (
                rest[len(before.strip()) :].partition(after) if after else (rest[len(before.strip()) :], "", "")
            )
            texts[name] = value.strip()
            rest = f"{mark}{following}".strip()
        values: dict[str, Any] = {}
        for name, text in texts.items():
            try:
                values[name] = parse_value(text, signature.output_fields[name].annotation)
            except ValueError as error:
                raise AdapterParseError(
                    adapter_name="PlainFormat",
                    signature=signature,  # pyright: ignore[reportArgumentType]  (DSPy's own annotation is of an instance)
                    lm_response=completion,
                    message=f"The field {name} cannot be read from {text[:80]!r}: {error}",
                ) from error
        values = apply_output_field_defaults(signature, values)
        if values.keys() != signature.output_fields.keys():
            raise AdapterParseError(
                adapter_name="PlainFormat",
                signature=signature,  # pyright: ignore[reportArgumentType]
                lm_response=completion,
                parsed_result=values,  # pyright: ignore[reportArgumentType]
            )
        return values


def _marks(signature: type[dspy.Signature]) -> list[Mark]:
    names = list(signature.output_fields)
    if len(names) == 1:
        return [Mark(names[0], "", "")]
    openings = [f"{names[0]}: ", *(f"\n{name}: " for name in names[1:])]
    return [Mark(*each) for each in zip(names, openings, [*openings[1:], ""], strict=True)]


def _text_pattern(characters: int) -> str:
    """Free text of 1 to `characters` characters without space at its start, which parsing strips."""
    return f"/\\S(.|\\n){{0,{max(characters - 1, 0)}}}/"


def _inputs(signature: type[dspy.Signature]) -> str:
    """What the signature says of its inputs beyond their names; of a single one, which has no name here, nothing."""
    if len(signature.input_fields) == 1:
        return ""
    return "\n".join(
        f"{name}: {said}" for name, field in signature.input_fields.items() if (said := _description(name, field))
    )


def _outputs(signature: type[dspy.Signature]) -> str:
    """What a reply must be."""
    fields = signature.output_fields
    if len(fields) == 1:
        name, field = next(iter(fields.items()))
        said = "; ".join(part for part in (_kind(field.annotation), _description(name, field)) if part)
        return f"Reply with {said}." if said else ""
    lines = [
        f"{name}: {'; '.join(part for part in (_kind(field.annotation) or 'text', _description(name, field)) if part)}"
        for name, field in fields.items()
    ]
    return "Reply with these lines:\n" + "\n".join(lines)


def _description(name: str, field: Any) -> str:
    said = str((field.json_schema_extra or {}).get("desc") or "")
    return "" if said == f"${{{name}}}" else said


def _kind(annotation: Any) -> str:
    """A type in words; empty for free text."""
    if is_text(annotation):
        return ""
    if choices := choices_of(annotation):
        return f"one of: {', '.join(text for text, _ in choices)}"
    if annotation in (int, float):
        return "a whole number" if annotation is int else "a number"
    return f"JSON of this schema: {json.dumps(TypeAdapter(annotation).json_schema(), ensure_ascii=False)}"
