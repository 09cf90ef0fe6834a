"""What every route has: an id, a caller, and an end that is a reply of HTTP, whatever happened.

Covered: request ids, keys with their scopes and rates, problems as JSON, one line of log a request (no text of it, unless the
settings say so). Not covered: what uvicorn cannot read as HTTP, which it refuses itself.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json, to_jsonable_python
from starlette.exceptions import HTTPException

from dspy_toolkit.serving.admission import Admission
from dspy_toolkit.serving.fallback import Move, moves_of
from dspy_toolkit.serving.keys import KeyRing, Scope
from dspy_toolkit.serving.measures import Measures
from dspy_toolkit.serving.problems import ClientGone, Problem, in_words, problem_of
from dspy_toolkit.serving.programs import Live
from dspy_toolkit.serving.requests import check_origin, details
from dspy_toolkit.serving.service import Service
from dspy_toolkit.serving.traces import next_context
from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)
ACCESS = logging.getLogger("dspy_toolkit.serving.access")

ANYBODY = "anybody"
"""The owner of a request that needed no key."""
GONE = 499
"""What the log says of a client that went away; nobody reads the reply."""


@dataclass
class Backend:
    """What the routes of one application share."""

    settings: Settings
    service: Service
    keys: KeyRing
    admission: Admission
    measures: Measures
    advice: ThreadPoolExecutor
    """Threads of the route of advice, which computes in this process."""
    readers: dict[str, Live] = field(default_factory=dict)
    """Project → the promoted program that reads its descriptions, of projects that are not served."""


def backend(request: Request) -> Backend:
    """Of the application that a request came to."""
    return request.app.state.dspy_toolkit_serving


async def caller(request: Request, scope: Scope) -> str:
    """The id of whoever asks, whose rate this request counts for.

    Raises:
        Problem: as of `checked_key`; 429 over the rate.
    """
    key = checked_key(request, scope)
    await backend(request).admission.count(key)
    return key


def checked_key(request: Request, scope: Scope) -> str:
    """The id of whoever asks; `ANYBODY` where no key is needed.

    Raises:
        Problem: 401 without a key or with a wrong one, 403 without the scope or from elsewhere, 503 where the keys cannot be read.
    """
    from dspy_toolkit.errors import SettingsError

    keys = backend(request).keys
    try:
        keys.refresh()
    except SettingsError as error:
        log.error("Nobody is let in: %s", error)
        raise Problem(503, "keys_unreadable", "Keys cannot be checked now.", retry_after=10) from None
    check_origin(request, keys_needed=keys.needed)
    if not keys.needed:
        return ANYBODY
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    key = keys.find(given.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", ""))
    if key is None:
        raise Problem(
            401, "no_key", "Send a key that holds: Authorization: Bearer dtk_….", headers={"WWW-Authenticate": "Bearer"}
        )
    if not key.may(scope):
        raise Problem(403, "no_scope", f"The key has no scope {scope}.")
    return key.id


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A reply of JSON."""
    data = to_json(value, fallback=str, inf_nan_mode="null")
    return Response(data, status, headers, "application/json")


class Route(APIRoute):
    """A route of this API; see the module."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """FastAPI's handler, with an id before and a reply of HTTP after it."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await answered(request, handler)

        return answer


async def answered(request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    """What a handler replies, or the problem that it raises; with an id before it, and headers and a line of log after it."""
    began = time.perf_counter()
    request.state.request_id = request_id = uuid.uuid4().hex
    request.state.said = {}
    request.state.traceparent, out = next_context(request.headers.get("traceparent"))
    try:
        response = await handler(request)
    except ClientGone:
        response = Response(status_code=GONE)
    except Exception as error:  # isolation boundary: the HTTP edge
        response = refusal(error, request_id, texts=backend(request).settings.serving.log_text)
        note_failure(request, error)
    response.headers["X-Request-Id"] = request_id
    response.headers.setdefault("traceparent", out)
    if not isinstance(response, HasOwnLog):
        log_request(request, response.status_code, time.perf_counter() - began)
    return response


class HasOwnLog:
    """A response that is not over when its route returns, and logs itself."""


def refusal(error: Exception, request_id: str, *, texts: bool = False) -> Response:
    """The reply to a request that failed. What nobody expected is logged with where it happened.

    Args:
        texts: whether the log may hold what the exception says, which may be a text of the request.
    """
    problem = _problem(error)
    if problem.code == "program_failed":
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("Request %s: %s\n%s", request_id, repr(error) if texts else type(error).__name__, where)
    elif problem.status >= 500:
        log.warning("Request %s: %s: %s", request_id, problem.code, in_words(error))
    return as_json(told(error, request_id), problem.status, {**problem.headers, **fell_back(moves_of(error))})


def told(error: Exception, request_id: str) -> dict[str, Any]:
    """What a client is told of a request that failed, and of who did not answer it, as JSON."""
    return _problem(error).body(request_id, [str(move) for move in moves_of(error)])


def fell_back(moves: list[Move]) -> dict[str, str]:
    """The header that says who did not answer; none where nobody failed."""
    said = "; ".join(str(move) for move in moves)
    return {"X-Fell-Back": said.encode("ascii", "backslashreplace").decode()} if moves else {}


def _problem(error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        found = list(error.errors())
        return Problem(422, "bad_fields", "The request does not fit.", details=details(found))
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        code = {404: "not_found", 405: "wrong_method", 400: "bad_request"}.get(error.status_code, "http")
        return Problem(error.status_code, code, str(error.detail), headers=headers)
    return problem_of(error)


def note_failure(request: Request, error: Exception) -> None:
    """Put what failed, and who did not answer, into a request's line of log."""
    request.state.said["code"] = _problem(error).code
    if moves := moves_of(error):
        request.state.said["fell_back"] = [str(move) for move in moves]


def note_texts(request: Request, **texts: Any) -> None:
    """Put inputs or outputs into a request's line of log, where `serving.log_text` says so."""
    if backend(request).settings.serving.log_text:
        request.state.said |= texts


def log_request(request: Request, status: int, seconds: float) -> None:
    """One line of JSON for a request that is over."""
    if not ACCESS.isEnabledFor(logging.INFO):
        return
    line = {
        "request_id": request.state.request_id,
        "method": request.method,
        "path": request.url.path[:200],
        "status": status,
        "seconds": round(seconds, 4),
        **request.state.said,
    }
    if given := request.headers.get("x-request-id"):
        line["client_request_id"] = given[:64]
    plain = to_jsonable_python(line, fallback=str, inf_nan_mode="null")
    ACCESS.info("%s", json.dumps(plain, ensure_ascii=True))
