"""The description of the API, `/openapi.json`: a path for each served program, with the types of its own fields.

Made anew for each request: what is served changes while the server runs. The examples work: they are made up to fit, and are no
rows of anybody's data.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from dspy_toolkit.serving.advice import AdviceBody
from dspy_toolkit.serving.chat import chat_request_schema
from dspy_toolkit.serving.embeddings import embeddings_request_schema
from dspy_toolkit.serving.programs import Live

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dspy_toolkit.serving.service import Service

REFERENCE = "#/components/schemas/{model}"
PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "request_id": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
WHY = {
    "400": "The body is no JSON, or a header makes no sense.",
    "401": "A key is needed.",
    "403": "The key may not, or the request comes from a page of another site.",
    "404": "There is no such program, version or request.",
    "408": "The body came too slowly.",
    "413": "Too large, or too long for the model.",
    "415": "It is not application/json.",
    "422": "Fields do not fit.",
    "429": "Over a limit; see Retry-After.",
    "500": "The program failed.",
    "502": "The model's reply does not hold the outputs.",
    "503": "The model cannot be used now.",
    "504": "Not in time.",
}
REPLY: dict[str, Any] = {
    "request_id": {"type": "string"},
    "program": {"type": "string"},
    "version": {"type": ["integer", "null"]},
    "model": {"type": "string"},
    "cached": {"type": "boolean", "description": "Whether no model was asked."},
    "usage": {"type": "object", "additionalProperties": {"type": "integer"}},
    "timings": {"type": "object", "additionalProperties": {"type": "number"}},
    "fell_back": {"type": "array", "items": {"type": "string"}},
    "members": {"type": "array", "items": {"type": "object"}},
    "agreement": {"type": "number"},
    "messages": {"type": "array"},
    "trace_id": {"type": "string"},
}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["start", "field", "prediction", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
"""Of a stream, each."""
GENERIC = ("/v1/programs/{name}/predict", "/v1/programs/{name}/predict/batch", "/v1/programs/{name}/stream")


def describe_api(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application as it is now."""
    document = get_openapi(title=app.title, version=_version(), routes=app.routes, description=ABOUT)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = PROBLEM
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    generic, others = {}, {}
    for path, methods in document["paths"].items():
        (generic if path in GENERIC else others)[path] = methods
    document["paths"] = paths = {}  # what people come for is first
    service: Service = app.state.dspy_toolkit_serving.service
    for name in service.names():
        _add_program(document, generic, name, _live(service, name))
    paths |= others
    bodies = {
        "/v1/chat/completions": chat_request_schema(),
        "/v1/embeddings": embeddings_request_schema(),
        "/v1/feedback": _feedback_schema(),
        "/v1/projects/{name}/advise": AdviceBody.model_json_schema(),
    }
    for path, schema in bodies.items():
        if path in paths:
            paths[path]["post"]["requestBody"] = _body(schema)
    for path, methods in paths.items():
        for operation in methods.values():
            _finish(path, operation)
    return document


ABOUT = (
    "Programs that were optimized and proved, served: each with the types of its own fields. "
    "Where the server has keys, send `Authorization: Bearer dtk_…`."
)


def _add_program(document: dict[str, Any], generic: dict[str, Any], name: str, live: Live) -> None:
    schemas = document["components"]["schemas"]
    key = name.replace("@", "_at_")
    inputs = _lifted(live.fields.inputs.json_schema(ref_template=REFERENCE), schemas)
    inputs = {**inputs, "example": live.fields.example}
    outputs = _lifted(live.fields.outputs.json_schema(mode="serialization", ref_template=REFERENCE), schemas)
    schemas[f"{key}.inputs"], schemas[f"{key}.prediction"] = inputs, outputs
    reply = {
        "type": "object",
        "required": ["request_id", "program", "version", "model", "prediction", "cached"],
        "properties": {**REPLY, "prediction": {"$ref": f"#/components/schemas/{key}.prediction"}},
    }
    schemas[f"{key}.reply"] = reply
    given, made = ({"$ref": f"#/components/schemas/{key}.{part}"} for part in ("inputs", "reply"))
    both = {"anyOf": [made, {"$ref": "#/components/schemas/Problem"}]}
    rows = {"type": "object", "required": ["rows"], "additionalProperties": False}
    rows["properties"] = {"rows": {"type": "array", "minItems": 1, "items": given}}
    replies = {"type": "object", "required": ["replies"], "properties": {"replies": {"type": "array", "items": both}}}
    shapes = {GENERIC[0]: (given, "application/json", made), GENERIC[1]: (rows, "application/json", replies)}
    shapes[GENERIC[2]] = (given, "text/event-stream", EVENT)
    for path, (body, kind, said) in shapes.items():
        if path not in generic:
            continue
        operation = copy.deepcopy(generic[path]["post"])
        operation["operationId"] = f"{operation['operationId']}_{key}"
        operation["tags"] = [name]
        operation["summary"] = f"{operation['summary']}: {live.project.summary}"
        operation["parameters"] = [each for each in operation.get("parameters", []) if each["in"] != "path"]
        operation["requestBody"] = _body(body)
        operation["responses"]["200"] = {"description": "The answer.", "content": {kind: {"schema": said}}}
        document["paths"][path.replace("{name}", name)] = {"post": operation}


def _live(service: Service, name: str) -> Live:
    table = service.ensemble(name)
    return service.entries[table.members[0] if table else name].standing.live


def _lifted(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A schema whose definitions are the document's."""
    for name, part in schema.pop("$defs", {}).items():
        schemas[name] = part
    return schema


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _feedback_schema() -> dict[str, Any]:
    from dspy_toolkit.serving.routes import FeedbackBody

    return FeedbackBody.model_json_schema()


def _finish(path: str, operation: dict[str, Any]) -> None:
    """Say how each route may end."""
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation["responses"].pop("422", None)
    if path == "/healthz":
        return
    if path == "/readyz":
        operation["responses"]["503"] = {"description": "Not ready.", "content": {"application/json": {"schema": {}}}}
        return
    if path == "/metrics":
        operation["responses"]["200"] = {
            "description": "Numbers.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    operation["security"] = [{"key": []}, {}]
    for status, why in WHY.items():
        operation["responses"].setdefault(status, {"description": why, "content": problem})


def _version() -> str:
    from importlib.metadata import version

    return version("dspy-toolkit")
