"""OpenAI's chat completions and list of models, for tools that know no other API: the models that this process has loaded.

Covered: whole and streamed replies, JSON schemas, tools where the model has them, and all that the engine understands
(`dspy_toolkit.lm.litellm.translation`), in `extra_body` what OpenAI does not name. A model that LiteLLM reaches elsewhere is not
offered: a caller would spend its owner's key. Vectors of texts are `embeddings`'.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.serving.edge import Backend, HasOwnLog, Route, as_json, backend, caller, log_request, note_texts
from dspy_toolkit.serving.problems import ClientGone, Problem, problem_of
from dspy_toolkit.serving.requests import (
    READ_SECONDS,
    deadline_of,
    parse,
    read_body,
    until_gone,
    while_connected,
)

router = APIRouter(route_class=Route)

KIND = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
}


Table = dict[str, JsonValue]


class ContentPart(BaseModel):
    """A part of a turn. The engine reads text alone, and says so of the others."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    type: Literal["text", "image_url", "input_audio", "file"]


class ToolCall(BaseModel):
    """A call that the model made before."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    function: Table


class ChatMessage(BaseModel):
    """A turn. Its types are here, since LiteLLM looks into it before the engine can refuse it."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    role: str = Field(min_length=1)
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None


class ChatBody(BaseModel):
    """OpenAI's request, as far as it must be understood here; the engine understands, or refuses by name, the rest."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=300)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: Table | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=16)
    stop: str | list[str] | None = None
    tools: list[Table] | None = None
    tool_choice: str | Table | None = None
    response_format: Table | None = None
    user: str | None = None
    extra_body: Table | None = None


_BODY = TypeAdapter(ChatBody)


def models(back: Backend) -> dict[str, str]:
    """Names that a client may use → the full name: that of each served program's model, with and without its hash."""
    found: dict[str, str] = {}
    for entry in back.service.entries.values():
        full = entry.standing.live.model
        if full.startswith(PREFIX):
            found |= {full: full, full.partition("@")[0]: full, full.partition("@")[0].removeprefix(PREFIX): full}
    return found


@router.get("/v1/models", tags=["openai"], summary="The models that are loaded")
async def list_models(request: Request) -> Response:
    """OpenAI's list."""
    await caller(request, "predict")
    names = sorted(set(models(backend(request)).values()))
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "dspy-toolkit"} for name in names]
    return as_json({"object": "list", "data": data})


@router.post("/v1/chat/completions", tags=["openai"], summary="Chat with a loaded model")
async def complete(request: Request) -> Response:
    """As OpenAI's, whole or with `stream`."""
    back = backend(request)
    try:
        owner = await caller(request, "predict")
        body = parse(await read_body(request, back.settings.serving.max_body_bytes), _BODY)
        call = _call(back, body)
        note_texts(request, inputs=call["messages"])
        deadline = deadline_of(request, back.settings.serving.deadline_seconds)
        if body.stream:
            with_usage = bool((body.stream_options or {}).get("include_usage"))
            return ChatStream(back, request, call, owner, deadline, with_usage)

        async def work() -> Any:
            from dspy_toolkit.lm.litellm.provider import import_litellm

            async with asyncio.timeout(deadline - time.monotonic()), back.admission.slot(owner):
                return await import_litellm().acompletion(**call)

        response = await while_connected(request, work())
        back.measures.requests.labels("chat", "answered").inc()
        made = _plain(response, call["model"])
        note_texts(request, reply=made["choices"])
        return as_json(made)
    except ClientGone:
        raise
    except (
        Exception
    ) as error:  # isolation boundary: the HTTP edge, where OpenAI's clients want their own form of an error
        problem, said = as_openai_error(error)
        back.measures.requests.labels("chat", problem.code).inc()
        return as_json({"error": said}, problem.status, problem.headers)


def as_openai_error(error: Exception) -> tuple[Problem, dict[str, Any]]:
    """What went wrong, and how OpenAI would say it."""
    problem = _problem(error)
    return problem, _openai_error(problem)


def _call(back: Backend, body: ChatBody) -> dict[str, Any]:
    """LiteLLM's arguments. Raises Problem, 404 for a model that is not loaded."""
    known = models(back)
    if (full := known.get(body.model)) is None:
        raise Problem(
            404, "model_not_found", f"No such model is loaded. Known: {', '.join(sorted(set(known.values())))}."
        )
    most = back.settings.serving.max_tokens
    asked = body.max_completion_tokens or body.max_tokens or most
    # Inside `extra_body` a limit of this server would come back after it was checked.
    extra = body.extra_body or {}
    refused = sorted(NOT_TAKEN & ((body.model_extra or {}).keys() | extra.keys()) | LIMITED & extra.keys())
    if refused:
        raise Problem(400, "bad_fields", f"{refused[0]} is not taken from a request.")
    said = {**body.model_dump(exclude_unset=True, exclude={"extra_body", *LIMITED}), **extra}
    given = {name: value for name, value in said.items() if value is not None}
    known_to_openai = {name: given.pop(name) for name in list(given) if name in OPENAI}
    return {
        **known_to_openai,
        "model": full,
        "messages": [message.model_dump(exclude_unset=True) for message in body.messages],
        "max_tokens": min(asked, most),
        "n": body.n or 1,
        "extra_body": given,
        "num_retries": 0,
        "max_retries": 0,
        "cache": {"no-cache": True, "no-store": True},
        "_skip_mcp_handler": True,
    }


NOT_TAKEN = frozenset({"api_base", "base_url", "api_key", "model_list", "fallbacks", "mock_response"})
LIMITED = frozenset({"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"})
"""What this route decides itself."""
OPENAI = frozenset(
    {
        "temperature",
        "top_p",
        "stop",
        "seed",
        "response_format",
        "tools",
        "tool_choice",
        "logprobs",
        "top_logprobs",
        "user",
    }
    | {"presence_penalty", "frequency_penalty", "parallel_tool_calls"}
)


class ChatStream(HasOwnLog, Response):
    """A reply as OpenAI's chunks. The first piece is there before the status is sent, so that a refusal is one."""

    media_type = "text/event-stream"

    def __init__(
        self, back: Backend, request: Request, call: dict[str, Any], owner: str, deadline: float, with_usage: bool
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._back, self._request, self._call, self._owner = back, request, call, owner
        self._deadline, self._with_usage = deadline, with_usage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See `starlette.responses.Response`."""
        began, outcome = time.perf_counter(), "client_gone"
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            async with asyncio.timeout(self._deadline - time.monotonic() + READ_SECONDS):
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                outcome = sending.result()
        except TimeoutError:
            outcome = "read_too_slowly"
        except OSError:  # of a server whose client has gone
            pass
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            self._back.measures.requests.labels("chat", outcome).inc()
            log_request(self._request, self.status_code, time.perf_counter() - began)

    async def _send(self, send: Any) -> str:
        started = False
        try:
            async with (
                asyncio.timeout(self._deadline - time.monotonic()),
                self._back.admission.slot(self._owner),
                aclosing(self._pieces()) as pieces,
            ):
                async for piece in pieces:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        started = True
                    await _event(send, piece)
        except Exception as error:  # isolation boundary: the HTTP edge
            return await self._fail(send, error, started=started)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
        return "answered"

    async def _fail(self, send: Any, error: Exception, *, started: bool) -> str:
        problem = _problem(error)
        said = {"error": _openai_error(problem)}
        if started:
            await _event(send, said)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            self.status_code = problem.status
            response = as_json(said, problem.status, problem.headers)
            response.headers.update({name: self.headers[name] for name in ("x-request-id", "traceparent")})
            await response(self._request.scope, self._request.receive, send)
        return problem.code

    async def _pieces(self) -> AsyncGenerator[dict[str, Any]]:
        from dspy_toolkit.lm.litellm.provider import import_litellm

        stream: Any = await import_litellm().acompletion(
            **self._call, stream=True, stream_options={"include_usage": True}
        )
        try:
            async for part in stream:
                piece = _plain(part, self._call["model"])
                usage = piece.pop("usage", None)
                if piece.get("choices"):
                    yield piece
                if usage and self._with_usage:
                    yield {**piece, "choices": [], "usage": usage}
        finally:
            await stream.aclose()


async def _event(send: Any, data: dict[str, Any]) -> None:
    text = json.dumps(data, ensure_ascii=False)
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def _plain(response: Any, model: str) -> dict[str, Any]:
    """LiteLLM's response as OpenAI's, without what other clients would stumble over."""
    said = response.model_dump(exclude_none=True)
    said["model"] = model
    for choice in said.get("choices", []):
        part = choice.get("message") or choice.get("delta") or {}
        part.pop("provider_specific_fields", None)
        if "message" in choice:
            part.setdefault("content", None)
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
    said.pop("provider_specific_fields", None)
    return said


def _problem(error: Exception) -> Problem:
    """With what the engine says of a request that it refuses: the caller chose its parameters."""
    from dspy_toolkit.errors import RequestRefused
    from dspy_toolkit.lm import root_error

    known = root_error(error)
    if isinstance(known, RequestRefused):
        return Problem(400, "request_refused", str(known))
    if known is None and is_litellm_refusal(error):
        return Problem(400, "request_refused", "A field is not as OpenAI's API takes it.")
    return problem_of(error)


def is_litellm_refusal(error: Exception) -> bool:
    """Whether LiteLLM itself refused the request, before it came to the engine."""
    from dspy_toolkit.lm.litellm.provider import import_litellm

    return isinstance(error, import_litellm().BadRequestError)


def _openai_error(problem: Problem) -> dict[str, Any]:
    kind = KIND.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return {"message": problem.message, "type": kind, "param": None, "code": problem.code}
