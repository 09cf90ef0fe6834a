"""The routes of programs: asking one, many rows or a stream; what is served; feedback; health and numbers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_json, to_jsonable_python

from dspy_toolkit.feedback import Feedback, add_feedback
from dspy_toolkit.serving.edge import (
    Backend,
    HasOwnLog,
    Route,
    as_json,
    backend,
    caller,
    checked_key,
    fell_back,
    log_request,
    note_failure,
    note_texts,
    refusal,
    told,
)
from dspy_toolkit.serving.problems import ClientGone, Problem, problem_of
from dspy_toolkit.serving.replies import Ask, Reply
from dspy_toolkit.serving.requests import (
    READ_SECONDS,
    check_lengths,
    deadline_of,
    details,
    parse,
    read_body,
    until_gone,
    while_connected,
)

router = APIRouter(route_class=Route)

PING_SECONDS = 15.0
Members = Annotated[bool, Query(description="Of an ensemble: give each member's answer too.")]
Messages = Annotated[bool, Query(description="Give the messages that the model was sent; needs the scope admin.")]


@router.post("/v1/programs/{name}/predict", tags=["programs"], summary="Ask a program")
async def predict(name: str, request: Request, members: Members = False, messages: Messages = False) -> Response:
    """Inputs in, the program's outputs out. `name` may be `router`, `router@3`, or an ensemble."""
    back = backend(request)
    owner = await caller(request, "admin" if messages else "predict")
    standing = await back.service.standing(name)
    body = await read_body(request, back.settings.serving.max_body_bytes)
    inputs = parse(body, standing.live.fields.inputs, back.settings.serving.max_field_characters)
    ask = _ask(request, owner, members=members, messages=messages)

    async def work() -> Reply:
        async with _in_time(ask), back.admission.slot(owner):
            return await back.service.predict(name, inputs, ask)

    reply = await _counted(back, request, name, while_connected(request, work()), inputs)
    return as_json(reply.as_json(), headers=_headers(reply))


@router.post("/v1/programs/{name}/predict/batch", tags=["programs"], summary="Ask a program about many rows")
async def predict_batch(name: str, request: Request) -> Response:
    """`{"rows": [inputs, …]}` in; `{"replies": […]}` out, in the same order. A row that fails has its `error`, and the others
    their answers.
    """
    back = backend(request)
    owner = await caller(request, "predict")
    serving = back.settings.serving
    standing = await back.service.standing(name)
    rows = parse(await read_body(request, serving.max_body_bytes), _BATCH).rows
    # Each row counts as a request, so a batch beyond the rate could never be answered.
    most = min(serving.max_batch, serving.rate_per_minute)
    if len(rows) > most:
        raise Problem(413, "batch_too_large", f"{len(rows)} rows are more than {most}.")
    await back.admission.count(owner, len(rows) - 1)
    note_texts(request, inputs=rows)
    base = _ask(request, owner)

    async def one(row: dict[str, Any]) -> dict[str, Any]:
        ask = Ask(base.deadline, owner=owner, traceparent=base.traceparent)
        try:
            try:
                inputs = standing.live.fields.inputs.validate_python(row)
            except ValidationError as error:
                found = error.errors(include_url=False, include_context=False, include_input=False)
                raise Problem(422, "bad_fields", found[0]["msg"], details=details(found)) from None
            check_lengths(inputs, serving.max_field_characters)
            async with _in_time(ask), back.admission.slot(owner):
                return (await back.service.predict(name, inputs, ask)).as_json()
        except Exception as error:  # isolation boundary: one row of a batch
            return told(error, ask.request_id)

    async def work() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(one, rows)))

    replies = await while_connected(request, work())
    request.state.said |= {"program": name, "rows": len(rows)}
    note_texts(request, predictions=[reply.get("prediction") for reply in replies])
    for reply in replies:
        outcome = reply["error"]["code"] if "error" in reply else "answered"
        back.measures.requests.labels(name, outcome).inc()
    return as_json({"replies": replies})


@router.post("/v1/programs/{name}/stream", tags=["programs"], summary="Ask a program, and see its fields grow")
async def stream(name: str, request: Request, members: Members = False, messages: Messages = False) -> Response:
    """Server-sent events: `start` (who answers; again where somebody else takes over, and then what came before it counts no
    more), `field` (a predictor's output, the number of its run, a piece of text), at the end `prediction` (the whole reply; it is
    what counts) or `error`.
    """
    back = backend(request)
    owner = await caller(request, "admin" if messages else "predict")
    standing = await back.service.standing(name)
    body = await read_body(request, back.settings.serving.max_body_bytes)
    inputs = parse(body, standing.live.fields.inputs, back.settings.serving.max_field_characters)
    return EventStream(back, request, name, inputs, _ask(request, owner, members=members, messages=messages))


class EventStream(HasOwnLog, Response):
    """A program's run as server-sent events. Nothing is begun before a reply can be sent, so a full queue is still 429.

    The place that it takes is free again when the program is done, at the deadline at the latest, whether or not anybody reads.
    """

    media_type = "text/event-stream"

    def __init__(self, back: Backend, request: Request, name: str, inputs: dict[str, Any], ask: Ask) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._back, self._request, self._name, self._inputs = back, request, name, inputs
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._ask = replace(ask, put=lambda name, data: self._events.put_nowait((name, data)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See `starlette.responses.Response`."""
        began, request = time.perf_counter(), self._request
        note_texts(request, inputs=self._inputs)
        gone = asyncio.ensure_future(until_gone(receive))
        running = asyncio.ensure_future(self._run())
        outcome = "client_gone"
        try:
            async with asyncio.timeout(self._ask.deadline - time.monotonic() + READ_SECONDS):
                outcome = await self._send_all(gone, scope, receive, send)
        except TimeoutError:
            outcome = "read_too_slowly"
        except (ClientGone, OSError):  # the latter of a server whose client has gone
            pass
        finally:
            running.cancel()
            gone.cancel()
            await asyncio.gather(running, gone, return_exceptions=True)
            self._back.measures.requests.labels(self._name, outcome).inc()
            self._back.measures.seconds.labels(self._name).observe(time.perf_counter() - began)
            request.state.said |= {"program": self._name, "outcome": outcome}
            log_request(request, self.status_code, time.perf_counter() - began)

    async def _run(self) -> None:
        """Put `admitted`, what grows, and at the end `prediction` or `failed` into the queue."""
        ask = self._ask
        try:
            async with _in_time(ask), self._back.admission.slot(ask.owner):
                self._events.put_nowait(("admitted", None))
                reply = await self._back.service.predict(self._name, self._inputs, ask)
        except Exception as error:  # isolation boundary: one request
            self._events.put_nowait(("failed", error))
        else:
            _note_reply(self._request, reply)
            self._events.put_nowait(("prediction", reply.as_json()))

    async def _send_all(self, gone: asyncio.Future[Any], scope: Any, receive: Any, send: Any) -> str:
        """Send events until the last one; its outcome. What fails before it has a place is a reply of HTTP."""
        name, data = await self._next(gone)
        if name == "failed":
            response = self._refusal(data)
            response.headers.update({name: self.headers[name] for name in ("x-request-id", "traceparent")})
            self.status_code = response.status_code
            await response(scope, receive, send)
            return problem_of(data).code
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while True:
            name, data = await self._next(gone, PING_SECONDS)
            if name == "ping":
                await send({"type": "http.response.body", "body": KEEPALIVE_COMMENT, "more_body": True})
                continue
            outcome = "answered" if name == "prediction" else None
            if name == "failed":
                self._refusal(data)  # for the log
                outcome, name, data = (
                    problem_of(data).code,
                    "error",
                    told(data, self._ask.request_id)["error"],
                )
            text = to_json(data, fallback=str, inf_nan_mode="null").decode()
            event = format_sse_event(data_str=text, event=name)
            await send({"type": "http.response.body", "body": event, "more_body": outcome is None})
            if outcome is not None:
                return outcome

    async def _next(self, gone: asyncio.Future[Any], seconds: float | None = None) -> tuple[str, Any]:
        """The next event; `ping` where there is none for so long. Raises ClientGone."""
        waiting = asyncio.ensure_future(self._events.get())
        try:
            done, _ = await asyncio.wait({waiting, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                raise ClientGone
            return waiting.result() if done else ("ping", None)
        finally:
            waiting.cancel()

    def _refusal(self, error: Exception) -> Response:
        note_failure(self._request, error)
        return refusal(error, self._ask.request_id, texts=self._back.settings.serving.log_text)


@router.get("/v1/programs", tags=["programs"], summary="What is served")
async def list_programs(request: Request) -> Response:
    """The names, with what stands behind each now."""
    await caller(request, "predict")
    service = backend(request).service
    return as_json({"programs": [_about(service, name) for name in service.names()]})


@router.get("/v1/programs/{name}", tags=["programs"], summary="A program: its fields, scores, lineage and levers")
async def show_program(name: str, request: Request) -> Response:
    """What `name` (also `router@3`) stands for now."""
    await caller(request, "predict")
    service = backend(request).service
    standing = await service.standing(name)
    from dspy_toolkit.serving.describing import describe

    about = _about(service, name) if name in service.names() else {"name": name}
    return as_json(about | describe(standing.live))


@router.get("/v1/programs/{name}/challenger", tags=["programs"], summary="Is the challenger better?")
async def challenger(name: str, request: Request) -> Response:
    """The gate's verdict on the labelled pairs of champion and challenger so far. Needs the scope admin."""
    await caller(request, "admin")
    service = backend(request).service
    standing = await service.standing(name)
    if standing.challenger is None:
        raise Problem(404, "no_challenger", "Nothing stands beside this program's champion.")
    said = await asyncio.to_thread(service.challengers.verdict, name, standing.live, standing.challenger)
    return as_json(said)


class FeedbackBody(BaseModel):
    """What somebody says of an answer; a rating, labels, or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    request_id: str = Field(min_length=1, max_length=64, description="Of the reply that it is about.")
    rating: float | None = Field(None, ge=0, le=1, description="0 useless, 1 perfect.")
    labels: dict[str, JsonValue] | None = Field(None, description="Output → what it should have been.")


class BatchBody(BaseModel):
    """Rows to ask a program about."""

    model_config = ConfigDict(extra="forbid")

    rows: list[dict[str, JsonValue]] = Field(min_length=1)


_FEEDBACK = TypeAdapter(FeedbackBody)
_BATCH = TypeAdapter(BatchBody)


@router.post("/v1/feedback", tags=["feedback"], summary="Say how good an answer was", status_code=201)
async def give_feedback(request: Request) -> Response:
    """Joined to the request that it is about, and written to the home before this returns."""
    back = backend(request)
    owner = await caller(request, "predict")
    said = parse(await read_body(request, back.settings.serving.max_body_bytes), _FEEDBACK)
    if said.rating is None and not said.labels:
        raise Problem(422, "bad_fields", "Give a rating, labels, or both.")
    served = back.service.remembered.find(said.request_id, owner)
    if served is None:
        raise Problem(404, "no_such_request", "No answer of that request_id is remembered; the last ones are.")
    labels = await _labels(back, served.program, said.labels)
    entry = Feedback(
        at=datetime.now(UTC),
        rating=said.rating,
        labels=labels,
        **{
            name: getattr(served, name)
            for name in ("request_id", "trace_id", "program", "version", "inputs", "prediction", "cached", "seconds")
        },
    )
    async with back.admission.slot(owner):
        await asyncio.to_thread(add_feedback, back.settings.path(), entry)
        if served.trace_id is not None:
            await asyncio.to_thread(back.service.tracer.log_feedback, served.trace_id, said.rating, labels)
        if labels:
            await asyncio.to_thread(back.service.challengers.label, served.request_id, served.inputs, labels)
    back.measures.feedback.labels(served.program).inc()
    return as_json({"request_id": served.request_id, "program": served.program}, 201)


async def _labels(back: Backend, program: str, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Labels as the program's outputs. Raises Problem, 422."""
    if not given:
        return None
    types = (await back.service.standing(program)).live.fields.output_types
    fitted, wrong = {}, []
    for name, value in given.items():
        if name not in types:
            wrong.append({"field": f"labels.{name}", "message": f"There is no such output. Known: {', '.join(types)}."})
            continue
        try:
            fitted[name] = to_jsonable_python(TypeAdapter(types[name]).validate_python(value), fallback=str)
        except ValidationError as error:
            wrong.append({"field": f"labels.{name}", "message": error.errors(include_url=False)[0]["msg"]})
    if wrong:
        raise Problem(422, "bad_fields", f"{wrong[0]['field']}: {wrong[0]['message']}", details=wrong)
    check_lengths(fitted, back.settings.serving.max_field_characters)
    return fitted


@router.get("/healthz", tags=["server"], summary="Is the process alive?")
async def health() -> dict[Literal["status"], Literal["ok"]]:
    """200 while the event loop answers."""
    return {"status": "ok"}


@router.get("/readyz", tags=["server"], summary="Can it answer?")
async def ready(request: Request) -> Response:
    """200 once programs and their local models are loaded, as far as they can be; 503 before that. To whoever may ask programs it
    says how the registry and each model are, to others the status alone.
    """
    service = backend(request).service
    registry = "ok" if service.watcher.trouble is None else "unreadable: what was live goes on"
    is_ready = service.ready and "loading" not in service.models.values()
    body: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
    # Whoever looks from outside, such as a load balancer, has no key and needs no names.
    with suppress(Problem):
        checked_key(request, "predict")
        body |= {"registry": registry, "models": service.models}
    return as_json(body, 200 if is_ready else 503)


@router.get("/metrics", tags=["server"], summary="Numbers for Prometheus")
async def metrics(request: Request) -> Response:
    """The server's and its engines' numbers. Needs the scope admin, where keys are needed; counts for no rate."""
    checked_key(request, "admin")
    # A collector of the engines takes their locks.
    text = await asyncio.to_thread(backend(request).measures.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _ask(request: Request, owner: str, *, members: bool = False, messages: bool = False) -> Ask:
    return Ask(
        deadline=deadline_of(request, backend(request).settings.serving.deadline_seconds),
        members=members,
        messages=messages,
        owner=owner,
        traceparent=request.state.traceparent,
        request_id=request.state.request_id,
    )


def _in_time(ask: Ask) -> asyncio.Timeout:
    return asyncio.timeout(ask.deadline - time.monotonic())


async def _counted(back: Backend, request: Request, name: str, work: Any, inputs: dict[str, Any]) -> Reply:
    """A request's reply, counted and noted for the log, however it ends."""
    began, outcome = time.perf_counter(), "client_gone"
    request.state.said["program"] = name
    note_texts(request, inputs=inputs)
    try:
        reply = await work
        outcome = "answered"
        _note_reply(request, reply)
        return reply
    except ClientGone:
        raise
    except Exception as error:
        outcome = problem_of(error).code
        raise
    finally:
        back.measures.requests.labels(name, outcome).inc()
        back.measures.seconds.labels(name).observe(time.perf_counter() - began)


def _note_reply(request: Request, reply: Reply) -> None:
    """For the log."""
    request.state.said |= {"version": reply.answer.live.version, "cached": reply.answer.cached}
    if reply.moves:
        request.state.said["fell_back"] = [str(move) for move in reply.moves]
    note_texts(request, prediction=reply.answer.prediction)


def _headers(reply: Reply) -> dict[str, str]:
    headers = {"X-Program-Version": str(reply.answer.live), **fell_back(reply.moves)}
    if reply.traceparent is not None:
        headers["traceparent"] = reply.traceparent
    return headers


def _about(service: Any, name: str) -> dict[str, Any]:
    if (table := service.ensemble(name)) is not None:
        return {"name": name, "ensemble": {"members": list(table.members), "rule": table.rule}}
    entry = service.entries[name]
    standing = entry.standing
    refused = entry.refused and {"version": entry.refused[0], "why": "It could not be loaded or did not answer."}
    return {
        "name": name,
        "version": standing.live.version,
        "model": standing.live.model,
        "since": datetime.fromtimestamp(entry.since, UTC),
        "falls_back_on": [f"{live} on {live.model}" for live in standing.fall_back],
        "challenger": standing.challenger and standing.challenger.version,
        "refused": refused,
        "postponed": entry.postponed
        and {"version": entry.postponed.version, "why": "Its model was busy or did not answer."},
    }
