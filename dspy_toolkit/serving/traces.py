"""A share of the requests as MLflow traces: the program, its modules and LM calls as spans, the engine's numbers on them.

A trace holds inputs and outputs. A request's W3C context (`traceparent`) becomes the trace's tag, so that both can be found from
each other; MLflow's own ids stay, since a root that claims a remote parent would be shown nowhere. A remote model's server is told
the span of its call, by MLflow's ids and as sampled; of a request that is not traced it is told the context that the request came
with, if any. With `OTEL_EXPORTER_OTLP_ENDPOINT` set, MLflow sends the same spans there as well (which needs the package
opentelemetry-exporter-otlp-proto-http).

Tracing sets MLflow's process-wide tracking address, and is off (`serving.trace_share` = 0) unless asked for. What fails in it is
logged and concerns no request.

Covered: sampling, spans, feedback on a trace, contexts in and out. Not covered: `tracestate`.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from dspy_toolkit.lm.spans import send, sending
from dspy_toolkit.serving.problems import problem_of
from dspy_toolkit.tracking.dspy_spans import DspySpans

if TYPE_CHECKING:
    from dspy_toolkit.serving.replies import Ask, Reply
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ours: ContextVar[Any] = ContextVar("_ours", default=None)
"""The span of this request."""


def next_context(given: str | None) -> tuple[str | None, str]:
    """A request's W3C context: that which it came with, where it is one, and the one that its reply gets where it is not traced:
    the same, or a new one that says that nothing was recorded.
    """
    if given is not None and TRACEPARENT.fullmatch(given):
        return given, given
    return None, f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def context_of(span: Any) -> str:
    """The W3C context of an MLflow span that is open."""
    own = span._span.get_span_context()  # MLflow's own helper for headers knows the active span alone
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-01"


class RequestSpans(DspySpans):
    """Spans of a request; what a remote model is sent names the one of its call."""

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        super().on_lm_start(call_id, instance, inputs)
        send(context_of(self._spans[call_id]))


class Span:
    """A request that is traced, or one that is not."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def answered(self, reply: Reply) -> None:
        """It has an answer."""
        if self._span is None:
            return
        answer = reply.answer
        reply.trace_id, reply.traceparent = self._span.trace_id, context_of(self._span)
        self._span.set_outputs(answer.prediction)
        self._span.set_attributes(
            {
                "dspy_toolkit.program": str(answer.live),
                "dspy_toolkit.model": answer.live.model,
                "dspy_toolkit.cached": answer.cached,
                "dspy_toolkit.fell_back": [str(move) for move in reply.moves],
            }
        )


class Tracer:
    """Writes traces of a server's requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._share = settings, settings.serving.trace_share
        self._location: Any = None
        self._warned = False
        self._random = random.Random()

    def open(self) -> None:
        """Prepare MLflow, where anything is to be traced. Raises RegistryError when it cannot be reached."""
        if self._share <= 0:
            return
        from mlflow.entities.trace_location import MlflowExperimentLocation

        from dspy_toolkit.tracking.traces import prepare

        self._location = MlflowExperimentLocation(experiment_id=prepare(self._settings))

    def close(self) -> None:
        """Write what waits to be written."""
        if self._location is not None:
            import mlflow

            mlflow.flush_trace_async_logging()

    @contextmanager
    def request(self, name: str, inputs: dict[str, Any], ask: Ask) -> Iterator[Span]:
        """Around a request; drawn whether it is traced."""
        if self._location is None or self._random.random() >= self._share:
            with sending(ask.traceparent):
                yield Span()
            return
        import mlflow
        from opentelemetry import context

        # FastAPI continues the client's trace in this context, and a root with a parent elsewhere would be none.
        outside = context.attach(context.Context())
        try:
            yield from self._traced(mlflow, name, inputs, ask)
        finally:
            context.detach(outside)

    def _traced(self, mlflow: Any, name: str, inputs: dict[str, Any], ask: Ask) -> Iterator[Span]:
        from mlflow.entities.span import NO_OP_SPAN_TRACE_ID

        tags = {"request_id": ask.request_id} | ({"traceparent": ask.traceparent} if ask.traceparent else {})
        with mlflow.start_span(name, span_type="CHAIN", trace_destination=self._location) as span:
            if span.trace_id == NO_OP_SPAN_TRACE_ID:
                self._warn()
                with sending(ask.traceparent):
                    yield Span()
                return
            span.set_inputs(to_jsonable_python(inputs, fallback=str))
            mlflow.update_current_trace(client_request_id=ask.request_id, tags=tags)
            token = _ours.set(span)
            try:
                with sending(context_of(span)):
                    yield Span(span)
            except Exception as error:
                span.set_attribute("dspy_toolkit.problem", problem_of(error).code)
                raise
            finally:
                _ours.reset(token)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "Requests have no traces: MLflow makes none. Where an OTLP endpoint is set, it needs the package "
                "opentelemetry-exporter-otlp-proto-http."
            )

    def callbacks(self) -> list[Any]:
        """DSPy's callbacks for a run inside this request."""
        span = _ours.get()
        return [] if span is None else [RequestSpans(span)]

    def log_feedback(self, trace_id: str, rating: float | None, labels: dict[str, Any] | None) -> None:
        """Say on a trace what was said of its answer. Takes a thread that may wait; never raises."""
        try:
            import mlflow
            from mlflow.entities import AssessmentSource

            source = AssessmentSource(source_type="HUMAN", source_id="feedback")
            if rating is not None:
                mlflow.log_feedback(trace_id=trace_id, name="rating", value=rating, source=source)
            for name, value in (labels or {}).items():
                mlflow.log_expectation(trace_id=trace_id, name=name, value=value, source=source)
        except Exception as error:  # isolation boundary: the feedback is on disk, whether or not MLflow has it too
            log.warning("The trace %s has no feedback: %s: %s", trace_id, type(error).__name__, error)
