"""`json`: DSPy's `JSONAdapter`. The reply is one JSON object with a property for each output."""

from __future__ import annotations

from typing import Any, ClassVar

import dspy
from dspy.adapters.json_adapter import JSONAdapter
from dspy.adapters.utils import serialize_for_json
from pydantic import PydanticUserError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from dspy_toolkit.lm.formats.base import Format, compact
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader, JSONReader
from dspy_toolkit.lm.grammar import checked_grammar, has_custom_types, is_text, json_schema_grammar, max_length


class JSONFormat(Format, JSONAdapter):
    """`JSONAdapter`'s format with its grammar."""

    name: ClassVar[FormatName] = "json"

    @classmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """See `Format`."""
        fields: dict[str, Any] = {}
        for name, field in signature.output_fields.items():
            if not is_text(field.annotation) and has_custom_types(field.annotation):
                return None
            fields[name] = (str if is_text(field.annotation) else field.annotation, ...)
        if not fields or any(name.startswith("_") for name in fields):
            return None
        try:
            schema = create_model("Reply", **fields).model_json_schema()
        except (PydanticUserError, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
            return None
        for name, field in signature.output_fields.items():
            if is_text(field.annotation) and (limit := max_length(field)):
                schema["properties"][name]["maxLength"] = limit
        return checked_grammar(json_schema_grammar(schema), list(fields))

    @classmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader:
        """See `Format`."""
        return JSONReader(list(signature.output_fields))

    @classmethod
    def around(cls, signature: type[dspy.Signature], name: str) -> tuple[str, str]:
        """See `Format`."""
        names = list(signature.output_fields)
        before = "{" if name == names[0] else ","
        return f'{before}"{name}":', "}" if name == names[-1] else ","

    @classmethod
    def label(cls, text: str, value: Any) -> str:
        """See `Format`."""
        return compact(serialize_for_json(value))

    def _prepare_response_format(self, lm: Any, lm_kwargs: Any, signature: Any) -> None:
        """The grammar says it."""

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: Any = None
    ) -> str:
        """The reply that would have been right."""
        return compact(
            serialize_for_json({name: outputs.get(name, missing_field_message) for name in signature.output_fields})
        )
