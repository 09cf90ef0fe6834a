"""From the ways in which a call can ask for a format to one grammar.

- `response_format`, OpenAI's: text, json_object, json_schema, or a pydantic model as DSPy's JSONAdapter sends it;
- `guided_grammar`, `guided_json`, `guided_regex`, `guided_choice`, vLLM's, and its newer `structured_outputs` with `grammar`,
  `json`, `regex`, `choice` or `json_object`: a program that runs against a vLLM server runs here too;
- `tool_choice` `required` or a named function: the reply is a JSON list of calls, whatever notation the model was trained
  on, since only a grammar can promise one.

Grammars are in llguidance's Lark dialect or in GBNF (`root ::= …`). One format at a time. Not covered: vLLM's backends,
whitespace patterns and structural tags.
"""

from __future__ import annotations

import json
from typing import Any

from dspy_toolkit.errors import RequestRefused

KINDS = ("grammar", "json", "regex", "choice")
NAMES = ("response_format", "structured_outputs", *(f"guided_{kind}" for kind in KINDS))


def take_grammar(optional: dict[str, Any]) -> str | None:
    """The grammar that a call asks for, or None; what asked for it is taken out of `optional`.

    Raises:
        RequestRefused: a format that cannot be understood, or more than one.
    """
    asked = {name: value for name in NAMES if (value := optional.pop(name, None)) is not None}
    if asked.get("response_format") == {"type": "text"}:
        del asked["response_format"]
    if not asked:
        return None
    if len(asked) > 1:
        raise RequestRefused(f"The call asks for more than one format: {', '.join(asked)}. Give one of them.")
    ((name, value),) = asked.items()
    if name == "response_format":
        return _response_format(value)
    if name != "structured_outputs":
        return _guided(name.removeprefix("guided_"), value, name)
    given = {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else {}
    if len(given) != 1 or not given.keys() <= {*KINDS, "json_object"}:
        raise RequestRefused(
            f"structured_outputs is {str(value)[:200]}; give it one of {', '.join(KINDS)} or json_object."
        )
    ((kind, inner),) = given.items()
    return _guided(kind, inner, f"structured_outputs.{kind}")


def _guided(kind: str, value: Any, name: str) -> str | None:
    from dspy_toolkit.lm import grammar  # imports DSPy

    if kind == "grammar" and isinstance(value, str):
        return _as_lark(value)
    if kind == "json_object" and isinstance(value, bool):
        return grammar.any_object_grammar() if value else None
    if kind == "regex" and isinstance(value, str):
        return grammar.regex_grammar(value)
    if kind == "choice" and isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return grammar.choice_grammar(list(value))
    if kind == "json":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise RequestRefused(f"{name} is not JSON: {error}.") from None
        if isinstance(value, type) and hasattr(value, "model_json_schema"):
            value = value.model_json_schema()
        if isinstance(value, dict):
            return grammar.json_schema_grammar(value)
    wanted = {"json": "a JSON schema", "choice": "a list of texts", "json_object": "true"}.get(kind, "a text")
    raise RequestRefused(f"{name} is {str(value)[:200]!r}; give {wanted}.")


def _as_lark(text: str) -> str:
    if "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    try:
        return any_to_lark(text)
    except (GbnfToLarkError, ValueError) as error:
        raise RequestRefused(f"The grammar cannot be compiled: {str(error).splitlines()[0]}.") from error


def _response_format(value: Any) -> str | None:
    from dspy_toolkit.lm.grammar import any_object_grammar, json_schema_grammar  # imports DSPy

    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return json_schema_grammar(value.model_json_schema())
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        return any_object_grammar()
    described = value.get("json_schema") if kind == "json_schema" else None
    if isinstance(described, dict) and isinstance(schema := described.get("schema"), dict):
        return json_schema_grammar(schema)
    raise RequestRefused(f"response_format is {value!r}; give type text, json_object or json_schema with a schema.")


def take_tools(optional: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """(functions to offer, the grammar of a reply that must call one or None); what asked is taken out of `optional`.

    `tool_choice` `none` offers nothing. A named function is the only one offered.

    Raises:
        RequestRefused: what cannot be understood, and `parallel_tool_calls=False` where the model may choose to call.
    """
    tools, choice = optional.pop("tools", None) or (), optional.pop("tool_choice", None)
    parallel = optional.pop("parallel_tool_calls", None)
    if not isinstance(tools, list | tuple) or not all(_is_function(tool) for tool in tools):
        raise RequestRefused(
            f"tools is {str(tools)[:200]}; give a list of {{'type': 'function', 'function': {{'name': …, 'parameters': …}}}}."
        )
    if choice == "none":
        return (), None
    named = (
        choice["function"].get("name")
        if isinstance(choice, dict) and isinstance(choice.get("function"), dict)
        else None
    )
    if choice not in (None, "auto", "required") and not isinstance(named, str):
        raise RequestRefused(f"tool_choice is {choice!r}; give auto, none, required or one function by its name.")
    if named is not None:
        offered = [tool for tool in tools if tool["function"]["name"] == named]
        if not offered:
            names = ", ".join(tool["function"]["name"] for tool in tools) or "none"
            raise RequestRefused(f"tool_choice names the function {named!r}; the tools are: {names}.")
        tools = offered
    if choice in (None, "auto"):
        if tools and parallel is False:
            raise RequestRefused(
                "parallel_tool_calls is False, which only a grammar can promise: set tool_choice to required or to one "
                "function, or leave parallel_tool_calls out."
            )
        return tuple(tools), None
    if not tools:
        raise RequestRefused("tool_choice is required, and there are no tools. Give some.")
    from dspy_toolkit.lm.grammar import tool_call_grammar  # imports DSPy

    one = named is not None or parallel is False
    return tuple(tools), tool_call_grammar(tools, most=1) if one else tool_call_grammar(tools)


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and bool(function["name"])
        and isinstance(function.get("parameters") or {}, dict)
    )
