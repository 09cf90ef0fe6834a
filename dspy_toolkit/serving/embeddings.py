"""OpenAI's embeddings, of the models that this process has loaded: `dspy_toolkit.lm.engine.embedding` says what they are.

Covered: texts, as numbers or in base64, which OpenAI's own client asks for. Not covered: tokens in place of texts, `dimensions`.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dspy_toolkit.serving.chat import as_openai_error, models
from dspy_toolkit.serving.edge import Route, as_json, backend, caller, note_texts
from dspy_toolkit.serving.problems import ClientGone, Problem
from dspy_toolkit.serving.requests import deadline_of, parse, read_body, while_connected

router = APIRouter(route_class=Route)

TEXTS = 256
"""Of one request at most."""
Text = Annotated[str, Field(min_length=1)]


class EmbeddingsBody(BaseModel):
    """OpenAI's request."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=300)
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


_BODY = TypeAdapter(EmbeddingsBody)


@router.post("/v1/embeddings", tags=["openai"], summary="Vectors of texts, by a loaded model")
async def embed(request: Request) -> Response:
    """As OpenAI's."""
    back = backend(request)
    try:
        owner = await caller(request, "predict")
        body = parse(await read_body(request, back.settings.serving.max_body_bytes), _BODY)
        texts = [body.input] if isinstance(body.input, str) else body.input
        note_texts(request, inputs=texts)
        known = models(back)
        if (full := known.get(body.model)) is None:
            names = ", ".join(sorted(set(known.values())))
            raise Problem(404, "model_not_found", f"No such model is loaded. Known: {names}.")
        deadline = deadline_of(request, back.settings.serving.deadline_seconds)

        async def work() -> Any:
            from dspy_toolkit.lm.litellm.provider import import_litellm

            seconds = deadline - time.monotonic()
            async with asyncio.timeout(seconds), back.admission.slot(owner):
                return await import_litellm().aembedding(model=full, input=texts, num_retries=0, max_retries=0)

        made = await while_connected(request, work())
        back.measures.requests.labels("embeddings", "answered").inc()
        return as_json(_plain(made, full, body.encoding_format))
    except ClientGone:
        raise
    except Exception as error:  # isolation boundary: the HTTP edge, as chat's
        problem, said = as_openai_error(error)
        back.measures.requests.labels("embeddings", problem.code).inc()
        return as_json({"error": said}, problem.status, problem.headers)


def _plain(made: Any, model: str, form: str) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": each["index"], "embedding": _written(each["embedding"], form)}
        for each in made.data
    ]
    tokens = made.usage.prompt_tokens
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _written(vector: list[float], form: str) -> Any:
    """As OpenAI's client reads it: numbers, or their float32 bytes, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if form == "base64" else vector
