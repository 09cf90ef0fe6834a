"""Reading a request, and noticing that nobody waits for its answer any more.

Covered: a body up to a size and within a time, as JSON and nothing else; the deadline that a client asks for; work that ends
when the client goes away, on JSON routes too. Not covered: what a body must hold (`schemas`), who may ask (`keys`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from dspy_toolkit.serving.problems import ClientGone, Problem
from dspy_toolkit.serving.schemas import characters

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")

BODY_SECONDS = 30.0
"""For a body to arrive."""
READ_SECONDS = 5.0
"""For the reader of a stream to take what is left of it once the deadline is over."""
DEADLINE_HEADER = "X-Deadline-Seconds"
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1", "testserver"})
"""By which this machine is asked, where nobody needs a key."""
SHOWN_PROBLEMS = 20


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request that says that it is JSON.

    Raises:
        Problem: 415, 413 or 408.
        ClientGone: it ended before the body did.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another origin may send a form or a plain text without asking; it may not send this.
        raise Problem(415, "not_json", "Send Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        # A kilobyte of gzip may hold a megabyte, so nothing is unpacked.
        raise Problem(415, "encoded_body", "Send the body as it is, without Content-Encoding.")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise _too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "body_too_slow", f"The body took more than {BODY_SECONDS:g} s.") from None
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem(413, "body_too_large", f"The body is longer than {most:,} bytes.")


def parse(body: bytes, kind: TypeAdapter[T], most_characters: int | None = None) -> T:
    """A body as the value that it must be.

    Args:
        most_characters: of all texts in one field.

    Raises:
        Problem: 400 where it is no JSON, 413 where a text is too long, 422 with an entry for each field that does not fit.
    """
    try:
        value = kind.validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise Problem(400, "bad_json", f"The body is no JSON: {found[0]['msg']}.") from None
        raise Problem(422, "bad_fields", _summary(found), details=details(found)) from None
    except RecursionError:
        raise Problem(400, "bad_json", "The body is nested too deeply.") from None
    if most_characters is not None and isinstance(value, dict):
        check_lengths(value, most_characters)
    return value


def check_lengths(inputs: dict[str, Any], most: int) -> None:
    """Refuse inputs with too long a text. Raises Problem, 413."""
    from pydantic_core import to_jsonable_python

    for name, value in inputs.items():
        size = len(value) if isinstance(value, str) else characters(to_jsonable_python(value, fallback=str))
        if size > most:
            raise Problem(413, "field_too_long", f"{name} has {size:,} characters, and {most:,} are the most.")


def details(found: list[Any]) -> list[dict[str, Any]]:
    """Pydantic's problems, without the values: a text of a request does not come back in an error."""
    return [
        {"field": ".".join(str(part) for part in each["loc"]), "message": each["msg"]}
        for each in found[:SHOWN_PROBLEMS]
    ]


def _summary(found: list[Any]) -> str:
    first = found[0]
    where = ".".join(str(part) for part in first["loc"]) or "The body"
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    return f"{where}: {first['msg']}.{more}"


def deadline_of(request: Request, most: float) -> float:
    """When the answer must be there, of `time.monotonic`. Raises Problem, 400, for a header that is no time."""
    given = request.headers.get(DEADLINE_HEADER)
    seconds = most
    if given is not None:
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            raise Problem(400, "bad_deadline", f"{DEADLINE_HEADER} must be a number of seconds above 0.")
    return time.monotonic() + min(seconds, most)


def check_origin(request: Request, *, keys_needed: bool) -> None:
    """Refuse what a page of another site makes a browser send.

    Raises:
        Problem: 403 for an Origin that is not this server's, and, where no key is needed, for a Host that is not this machine: a
            name that somebody else's DNS lets point here.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Problem(403, "other_origin", "Pages of other sites may not ask this server.")
    if not keys_needed and (urlsplit(f"//{host}").hostname or "") not in LOCAL_NAMES:
        raise Problem(403, "other_host", "Without keys only this machine itself is answered, by a local name.")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; when the client closes the connection, it is cancelled. The body must have been read.

    Raises:
        ClientGone: the client went away.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def until_gone(receive: Any) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
