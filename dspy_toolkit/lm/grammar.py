"""Grammars for the output fields of a DSPy signature, a JSON schema, a pattern or a list of tools.

A reply that ends under the grammar always parses: `ChatAdapter` gets every header in order, a Literal or enum is one of
its values, numbers and booleans are written as Python reads them, lists and pydantic models are JSON of their schema,
and every length is bounded, so that a small model cannot go on for ever. The notation is llguidance's dialect of Lark.

A signature gets no grammar if it has outputs of DSPy's own types (images, tools, …), a Literal whose values do not
survive parsing (spaces at an end, line breaks), or a JSON schema with what llguidance does not know (uniqueItems,
look-around, some formats). A grammar does not cover validators written in Python, the depth of a model that contains
itself, or the length of a string with a pattern or format of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, get_args

import dspy
from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from dspy_toolkit.lm.choices import bare, is_union, readable

log = logging.getLogger(__name__)

MAX_CHARACTERS = 600
"""Of a text field that states no `max_length` itself; some 150 tokens."""
MAX_ITEMS = 16
"""Of a list or a free-form object that states no limit itself."""
MAX_CALLS = 8
"""Tool calls in one reply, where one is required."""
MAX_KEY = 60
"""Characters of a key of a free-form object."""
MAX_DIGITS = 15
"""Of the integer part of a number; a float64 holds as many exactly."""
MAX_DECIMALS = 9
"""Of the fractional part of a number."""

INTEGER = f"/-?(0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}})/"
FLOAT = f"/-?(0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}})(\\.[0-9]{{1,{MAX_DECIMALS}}})?/"

DATE = (
    "([12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|[12][0-9](0[48]|[2468][048]|[13579][26])-02-29)"
)
TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])?"
FORMATS = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$"}
"""In place of llguidance's own, which let through leap seconds and the year 0: Python reads neither."""


def signature_grammar(signature: type[dspy.Signature]) -> str | None:
    """The grammar of a whole `ChatAdapter` reply for `signature`; None where no grammar can describe a field."""
    fields = tuple((name, field.annotation, max_length(field)) for name, field in signature.output_fields.items())
    try:
        return _grammar(fields)
    except TypeError:  # an unhashable annotation cannot be cached
        return _grammar.__wrapped__(fields)


@lru_cache(maxsize=1024)
def _grammar(fields: tuple[tuple[str, Any, int | None], ...]) -> str | None:
    if not fields:
        return None
    start, rules = [json.dumps(_header(fields[0][0], first=True))], []
    for index, (_, annotation, limit) in enumerate(fields):
        after = _header(fields[index + 1][0] if index + 1 < len(fields) else "completed")
        start.append(f"field_{index}")
        if is_text(annotation):
            # The next header is part of the text's rule: text ends where that first appears, or at its greatest length.
            rules.append(f"field_{index}[suffix={json.dumps(after)}]: {text_pattern(limit or MAX_CHARACTERS)}")
            continue
        body = value_rule(annotation)
        if body is None:
            return None
        start.append(json.dumps(after))
        rules.append(f"field_{index}: {body}")
    return checked_grammar("\n".join([f"start: {' '.join(start)}", *rules]), [name for name, _, _ in fields])


def checked_grammar(grammar: str, names: Iterable[str]) -> str | None:
    """`grammar`, or None where llguidance cannot compile it. Args: names: the outputs that it is for, to be said in the log."""
    import llguidance

    if problem := llguidance.LLMatcher.validate_grammar(grammar):
        log.info("No grammar for the output fields %s: %s", ", ".join(names), problem.splitlines()[0])
        return None
    return grammar


def _header(name: str, *, first: bool = False) -> str:
    end = "" if name == "completed" else "\n"
    return ("" if first else "\n\n") + f"[[ ## {name} ## ]]" + end


def max_length(field: Any) -> int | None:
    """`max_length` of a text field, from its pydantic constraint."""
    return next((found for item in field.metadata if (found := getattr(item, "max_length", None)) is not None), None)


def is_text(annotation: Any) -> bool:
    """Whether a field is free text: `str`, `dspy.Reasoning`, or a union of str and None, which DSPy does not parse."""
    if is_union(annotation):
        return str in get_args(annotation) and type(None) in get_args(annotation)
    return annotation is str or annotation is getattr(dspy, "Reasoning", str)


def text_pattern(characters: int) -> str:
    """Free text of 1 to `characters` characters, without header, and without space at its start (parsing strips it)."""
    # Two brackets in a row would begin a header. The complement of "holds a header" would be exact, but is too slow.
    return f"/[^\\s\\[]([^\\[]|\\[[^\\[]){{0,{max(characters - 1, 0)}}}/"


def value_rule(annotation: Any) -> str | None:
    """The right side of the rule for one field that is not free text, or None where none can describe it."""
    if (written := bare(annotation)) is not None:
        choices = readable(annotation, written)
        return " | ".join(quoted(text) for text, _ in choices) if choices else None
    if annotation is int:
        return INTEGER
    if annotation is float:
        return FLOAT
    if has_custom_types(annotation):
        return None
    try:
        schema = TypeAdapter(annotation).json_schema()
    except (PydanticUserError, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return None
    return json_rule(schema)


def has_custom_types(annotation: Any) -> bool:
    """Whether one of DSPy's own types is in it; their schemas are not what their parsers read."""
    return bool(dspy.Type.extract_custom_type_from_annotation(annotation))


def json_rule(schema: dict[str, Any]) -> str:
    """The right side of a rule for JSON of `schema`: every length bounded, no property that it does not name."""
    limited = bounded(schema) if _composed(schema) else closed(bounded(schema))
    text = json.dumps({**limited, "x-guidance": {"whitespace_flexible": False}})
    return f"%json {_without_del(text)}"


def json_schema_grammar(schema: dict[str, Any]) -> str:
    """The grammar of a whole reply that is JSON of `schema`."""
    return f"start: {json_rule(schema)}"


def any_object_grammar() -> str:
    """The grammar of a whole reply that is some JSON object, of any depth and length."""
    return 'start: %json {"type": "object", "x-guidance": {"whitespace_flexible": false}}'


def quoted(text: str) -> str:
    """`text` as the dialect writes it, a JSON string."""
    return _without_del(json.dumps(text, ensure_ascii=False))


def _without_del(text: str) -> str:
    # The one control character that JSON takes as it is and the dialect's lexer does not.
    return text.replace("\x7f", "\\u007f")


def regex_grammar(pattern: str) -> str:
    """The grammar of a whole reply that matches a regular expression. Look-around and back references are not known."""
    import llguidance

    return f"start: /{llguidance.regex_to_lark(pattern)}/"


def choice_grammar(choices: Sequence[str]) -> str:
    """The grammar of a whole reply that is one of `choices`."""
    return f"start: {' | '.join(map(quoted, choices))}"


def tool_call_grammar(tools: Sequence[dict[str, Any]], most: int = MAX_CALLS) -> str:
    """The grammar of a whole reply: a JSON list of 1 to `most` calls of `tools` (functions in OpenAI's notation)."""
    more = f' ("," call){{0,{most - 1}}}' if most > 1 else ""
    rules = [f'start: "[" call{more} "]"', f"call: {' | '.join(f'call_{n}' for n in range(len(tools)))}"]
    for number, tool in enumerate(tools):
        head = f'{{"name":{json.dumps(tool["function"]["name"], ensure_ascii=False)},"arguments":'
        schema = {"type": "object", "properties": {}, **(tool["function"].get("parameters") or {})}
        rules.append(f'call_{number}: {quoted(head)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: {json_rule(schema)}")
    return "\n".join(rules)


def is_tool_call_grammar(grammar: str, tools: Sequence[dict[str, Any]]) -> bool:
    """Whether a request's grammar is the one that promises calls of its tools."""
    return bool(tools) and grammar in (tool_call_grammar(tools), tool_call_grammar(tools, most=1))


SCALARS: list[dict[str, Any]] = [{"type": name} for name in ("string", "integer", "number", "boolean", "null")]
ANYTHING: dict[str, Any] = {
    "anyOf": [
        *SCALARS,
        {"type": "array", "items": {"anyOf": SCALARS}},
        {"type": "object", "additionalProperties": {"anyOf": SCALARS}},
    ]
}
"""Used for a schema that allows everything: values, and lists and objects of them."""

NAMED = ("properties", "$defs", "patternProperties")
"""Keywords whose keys are names, not keywords: a property called "type" is left alone."""
LITERAL = ("enum", "const", "default", "examples", "required")
"""Keywords whose values are data, not schemas."""


def bounded(schema: Any) -> Any:
    """A copy of a JSON schema in which strings, numbers, arrays and free-form objects have a greatest length."""
    if isinstance(schema, list):
        return [bounded(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if not schema.keys() - {"title", "description", "default", "examples"}:
        return bounded(ANYTHING)
    limited = {}
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            limited[key] = {name: bounded(item) for name, item in value.items()}
        else:
            limited[key] = value if key in LITERAL else bounded(value)
    kind = limited.get("type")
    if {"enum", "const"} & limited.keys():
        return limited
    if kind == "string" and limited.get("format") in FORMATS and "pattern" not in limited:
        limited["pattern"] = FORMATS[limited.pop("format")]
    elif kind == "string" and not {"pattern", "format"} & limited.keys():
        limited.setdefault("maxLength", max(MAX_CHARACTERS, limited.get("minLength", 0)))
    elif kind in ("integer", "number"):
        _bound_number(limited)
    elif kind == "array":
        limited.setdefault("maxItems", max(MAX_ITEMS, limited.get("minItems", 0)))
        if "items" not in limited and "prefixItems" not in limited:
            limited["items"] = bounded(ANYTHING)
    elif kind == "object" and "properties" not in limited:
        limited.setdefault("maxProperties", max(MAX_ITEMS, limited.get("minProperties", 0)))
        values = limited.pop("additionalProperties", True)
        if values is not False and "patternProperties" not in limited:
            # The only way to bound a key's length: a pattern that every short key fits.
            key = f'^[^"\\\\\\x00-\\x1f\\x7f]{{1,{MAX_KEY}}}$'
            limited["patternProperties"] = {key: bounded(ANYTHING) if values is True else values}
        limited["additionalProperties"] = False
    return limited


COMPOSING = {"allOf", "not", "if", "then", "else", "dependentSchemas", "unevaluatedProperties"}
"""Keywords under which one object must fit several schemas: what one does not name, another may require."""


def _composed(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(_composed(item) for item in schema)
    if not isinstance(schema, dict):
        return False
    if COMPOSING & schema.keys() or ("properties" in schema and {"anyOf", "oneOf", "$ref"} & schema.keys()):
        return True
    parts = (value.values() if key in NAMED and isinstance(value, dict) else [value] for key, value in _schemas(schema))
    return any(_composed(part) for group in parts for part in group)


def _schemas(schema: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in schema.items() if key not in LITERAL]


def closed(schema: Any) -> Any:
    """A copy of a JSON schema in which objects have the properties that it names and no others, unless it says
    otherwise.

    JSON Schema lets anybody add properties; a model would, without end, and the closing bracket could not be forced.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = dict(schema)
    for key, value in _schemas(schema):
        named = key in NAMED and isinstance(value, dict)
        shut[key] = {name: closed(item) for name, item in value.items()} if named else closed(value)
    names = schema.get("properties")
    if isinstance(names, dict) and "additionalProperties" not in schema:
        enough = set(schema.get("required", ())) <= names.keys() and schema.get("minProperties", 0) <= len(names)
        if enough:
            shut["additionalProperties"] = False
    return shut


def _bound_number(schema: dict[str, Any]) -> None:
    largest = 10**MAX_DIGITS - 1
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        schema["minimum"] = min(-largest, schema.get("maximum", 0), schema.get("exclusiveMaximum", 0) - 1)
    if not {"maximum", "exclusiveMaximum"} & schema.keys():
        schema["maximum"] = max(largest, schema.get("minimum", 0), schema.get("exclusiveMinimum", 0) + 1)
    if schema["type"] == "number":
        schema.setdefault("multipleOf", 10**-MAX_DECIMALS)
