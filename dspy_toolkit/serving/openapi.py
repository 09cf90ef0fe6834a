"""The description of the API, `/openapi.json`: a path for each served program, with the types of its own fields.

Made anew for each request: what is served changes while the server runs. The examples work, but for feedback, which needs the id
of a reply: they are made up to fit, of names that are served and models that are loaded, and are no rows of anybody's data.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.serving.advice import AdviceBody
from dspy_toolkit.serving.chat import ChatBody, models
from dspy_toolkit.serving.edge import Backend, Route, as_json, caller
from dspy_toolkit.serving.embeddings import EmbeddingsBody
from dspy_toolkit.serving.programs import Live
from dspy_toolkit.serving.routes import FeedbackBody
from dspy_toolkit.serving.schemas import example_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic.json_schema import JsonSchemaMode

    from dspy_toolkit.serving.service import Service

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
                "fell_back": {"type": "array", "items": {"type": "string"}},
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
    "415": "It is not application/json, or is compressed.",
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


log = logging.getLogger(__name__)
router = APIRouter(route_class=Route)


@router.get("/openapi.json", include_in_schema=False)
async def description(request: Request) -> Response:
    """This API as OpenAPI. It says what is served and of which fields, so it needs a key where there are keys."""
    await caller(request, "predict")
    document = await asyncio.to_thread(describe_api, request.app)
    if root := request.scope.get("root_path"):
        document["servers"] = [{"url": root}]
    return as_json(document)


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
    back: Backend = app.state.dspy_toolkit_serving
    names = back.service.names()
    for name in names:
        _add_program(document, generic, name, _live(back.service, name))
    paths |= others
    _add_bodies(document, back, names[0] if names else None)
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
    schemas[f"{key}.inputs"] = _lifted(live.fields.inputs, "validation", f"{key}.inputs", schemas)
    schemas[f"{key}.inputs"]["example"] = live.fields.example
    schemas[f"{key}.prediction"] = _lifted(live.fields.outputs, "serialization", f"{key}.prediction", schemas)
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
    example = live.fields.example
    shapes = {
        GENERIC[0]: (_body(given, example), "application/json", made),
        GENERIC[1]: (_body(rows, {"rows": [example]}), "application/json", replies),
        GENERIC[2]: (_body(given, example), "text/event-stream", EVENT),
    }
    for path, (body, kind, said) in shapes.items():
        if path not in generic:
            continue
        operation = copy.deepcopy(generic[path]["post"])
        operation["operationId"] = f"{operation['operationId']}_{key}"
        operation["tags"] = [name]
        operation["summary"] = f"{operation['summary']}: {live.project.summary}"
        operation["parameters"] = [each for each in operation.get("parameters", []) if each["in"] != "path"]
        operation["requestBody"] = body
        operation["responses"]["200"] = {"description": "The answer.", "content": {kind: {"schema": said}}}
        document["paths"][path.replace("{name}", name)] = {"post": operation}


def _live(service: Service, name: str) -> Live:
    table = service.ensemble(name)
    return service.entries[table.members[0] if table else name].standing.live


def _lifted(kind: TypeAdapter[Any], mode: JsonSchemaMode, prefix: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """A schema whose definitions are the document's, under names that begin with `prefix`: another program may have a model of
    the same name, and one that goes in may differ from one that comes out.
    """
    schema = kind.json_schema(mode=mode, ref_template=f"#/components/schemas/{prefix}.{{model}}")
    for name, part in schema.pop("$defs", {}).items():
        schemas[f"{prefix}.{name}"] = part
    return schema


def _add_bodies(document: dict[str, Any], back: Backend, program: str | None) -> None:
    """Bodies and names of the routes that are no program's; `program` is one that is served."""
    paths, schemas = document["paths"], document["components"]["schemas"]
    loaded = sorted(name for name in models(back) if "/" in name and "@" not in name)
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
    vectors = {"input": ["Hello", "Good day"], "encoding_format": "float"}
    advisors = _advisors()
    bodies: dict[str, tuple[Any, str, Any]] = {
        "/v1/chat/completions": (ChatBody, "chat", {"model": loaded[0], **chat} if loaded else None),
        "/v1/embeddings": (EmbeddingsBody, "embeddings", {"model": loaded[0], **vectors} if loaded else None),
        "/v1/feedback": (FeedbackBody, "feedback", _feedback(_live(back.service, program)) if program else None),
        "/v1/projects/{name}/advise": (AdviceBody, "advice", advisors[0][1] if advisors else None),
    }
    for path, (kind, key, example) in bodies.items():
        if path in paths:
            operation = paths[path]["post"]
            operation["requestBody"] = _body(_lifted(TypeAdapter(kind), "validation", key, schemas), example)
            if key in ("chat", "embeddings") and not loaded:
                operation["description"] += "\n\nIt needs a model that this process has loaded; none is."
    for path, methods in paths.items():
        for parameter in (each for one in methods.values() for each in one.get("parameters", [])):
            if parameter["in"] != "path":
                continue
            if path == "/v1/projects/{name}/advise" and advisors:
                parameter["example"], parameter["schema"]["enum"] = advisors[0][0], [name for name, _ in advisors]
            elif program:
                parameter["example"] = program


def _feedback(live: Live) -> dict[str, Any]:
    name, kind = next(iter(live.fields.output_types.items()))
    return {"request_id": "the request_id of a reply", "rating": 1, "labels": {name: example_of(kind, name)}}


@cache
def _advisors() -> list[tuple[str, dict[str, Any]]]:
    """The projects that advise, each with a body that fits; what is installed stays so while the server runs."""
    from dspy_toolkit.advising.advisor import advisor_names, load_advisor

    found: list[tuple[str, dict[str, Any]]] = []
    for name in advisor_names():
        try:
            situation = load_advisor(name).situation
        except ProjectError as error:
            log.warning("%s", error)
            continue
        fields = list(situation.model_fields)[:2]
        known = {field: situation.levels(field)[0] for field in fields}
        found.append((name, {"description": "Little memory, and few rows.", "known": known}))
    return found


def _body(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"required": True, "content": {"application/json": content}}


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
