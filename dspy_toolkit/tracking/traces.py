"""One MLflow trace of a run: the flow, its steps, programs, calls of language models, and what the engine did for each.

    with run_trace(settings, "optimize router", tags) as trace_id:   # nothing where `observe.trace` is off
        with step_trace("probe"):
            …

Another process finds W3C's context of the span that it is a part of in the environment variable TOOLKIT_TRACEPARENT: it has a
trace of its own, whose tag `part_of_trace` names that one, since MLflow 3.17 showed no spans of a second process in one trace.
With `OTEL_EXPORTER_OTLP_ENDPOINT` set, MLflow sends all spans there as well (which needs the package
opentelemetry-exporter-otlp-proto-http).

What fails in tracing is logged and concerns no run. A step's first RUNS programs have spans: a search runs thousands.

Covered: the spans of a run and its steps. Not covered: those of programs and calls (`dspy_spans`), a server's requests
(`dspy_toolkit.serving.traces`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.tracking.mlflow_client import experiment_id, session

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

VARIABLE = "TOOLKIT_TRACEPARENT"
"""Not `TRACEPARENT`, which somebody else may have set."""
PART_OF = "part_of_trace"
RUNS = 50
"""Programs of a step that have spans of their own."""
_open: ContextVar[Any] = ContextVar("_open", default=None)
"""The span that what comes next belongs to."""


def prepare(settings: Settings) -> str:
    """Let MLflow write traces where the settings say; the experiment's id. Sets MLflow's process-wide tracking address.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        # Without it MLflow would send the spans there only.
        os.environ.setdefault("MLFLOW_TRACE_ENABLE_OTLP_DUAL_EXPORT", "true")
    with session(settings, "Traces cannot be kept") as client:
        found = experiment_id(client, settings)
        with warnings.catch_warnings():
            # By the first span otherwise, which takes seconds. It warns of MLflow's own types.
            warnings.simplefilter("ignore")
            import mlflow.pyfunc
        mlflow.set_tracking_uri(settings.tracking_uri)
    return found


@contextmanager
def run_trace(settings: Settings, name: str, tags: Mapping[str, str]) -> Iterator[str | None]:
    """Around a run: its root span.

    Args:
        tags: of the trace.

    Yields:
        The trace's id of MLflow; None where nothing is traced.
    """
    if not settings.observe.trace:
        yield None
        return
    try:
        experiment = prepare(settings)
    except RegistryError as error:
        log.warning("This run has no trace: %s", error)
        yield None
        return
    import mlflow
    from mlflow.entities.span import NO_OP_SPAN_TRACE_ID
    from mlflow.entities.trace_location import MlflowExperimentLocation

    with ExitStack() as stack:
        stack.callback(mlflow.flush_trace_async_logging)
        place = MlflowExperimentLocation(experiment_id=experiment)
        span = stack.enter_context(mlflow.start_span(name, "CHAIN", trace_destination=place))
        if span.trace_id == NO_OP_SPAN_TRACE_ID:
            log.warning(
                "This run has no trace: MLflow makes none. Where an OTLP endpoint is set, it needs the package "
                "opentelemetry-exporter-otlp-proto-http."
            )
            yield None
            return
        above = os.environ.get(VARIABLE)
        part = {PART_OF: f"tr-{above.split('-')[1]}"} if above else {}
        mlflow.update_current_trace(tags={**tags, **part})
        token = _open.set(span)
        try:
            yield span.trace_id
        finally:
            _open.reset(token)


@contextmanager
def step_trace(name: str, *, texts: bool = True) -> Iterator[None]:
    """Around a step: a span, and spans for the programs and calls of its first RUNS programs. Nothing outside `run_trace`.

    Args:
        texts: whether these spans hold inputs and outputs.
    """
    if (above := _open.get()) is None:
        yield
        return
    import dspy
    import mlflow

    from dspy_toolkit.tracking.dspy_spans import DspySpans

    span = mlflow.start_span_no_context(name, "TASK", parent_span=above)
    token, status = _open.set(span), "ERROR"
    try:
        with dspy.context(callbacks=[*dspy.settings.callbacks, DspySpans(span, most=RUNS, texts=texts)]):
            yield
        status = "OK"
    finally:
        _open.reset(token)
        span.end(status=status)


def traceparent() -> str | None:
    """W3C's context of the open span, for another process's TOOLKIT_TRACEPARENT; None where nothing is traced."""
    span = _open.get()
    if span is None:
        return None
    own = span._span.get_span_context()  # MLflow's own helper for headers knows the active span alone
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-01"


def trace_id() -> str | None:
    """MLflow's id of the trace that is being written; None where none is."""
    span = _open.get()
    return None if span is None else span.trace_id
