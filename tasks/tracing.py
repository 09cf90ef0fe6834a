"""A flow as one trace of MLflow, and the way from Prefect's pages to it and back.

The trace has the ids of Prefect's run as tags; Prefect's run has the trace's id as a tag and as an artifact. A run that another
one started on a worker has a trace of its own, which names that one's by a tag.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from dspy_toolkit.printable import without_password
from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.traces import VARIABLE, run_trace, traceparent
from tasks import show

log = logging.getLogger(__name__)

TAG = "trace:"


@contextmanager
def traced() -> Iterator[None]:
    """Around a flow's body: a trace, where `observe.trace` is on, for all projects."""
    # Not a decorator: Prefect resolves a flow's types where the function it is given was written.
    settings = load_settings()
    if not settings.observe.trace:
        yield
        return
    tags = {"prefect.flow_run_id": str(flow_run.get_id() or ""), "prefect.page": show.page_of_run()}
    with run_trace(settings, flow_run.get_name() or "a run", tags) as trace_id:
        if trace_id is not None:
            _tell(trace_id, settings.tracking_uri)
        yield


def job_variables() -> dict[str, Any] | None:
    """What a run on a worker is given to name this trace; None where there is none."""
    above = traceparent()
    return None if above is None else {"env": {VARIABLE: above}}


def _tell(trace_id: str, tracking_uri: str) -> None:
    """Tag Prefect's run with the trace's id, and say where it is."""
    run_id = flow_run.get_id()
    if run_id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run_id, tags={*flow_run.get_tags(), f"{TAG}{trace_id}"})
        create_markdown_artifact(
            f"The trace `{trace_id}`, on {pages_of(tracking_uri)} under Traces.",
            key="trace",
            description=f"Trace {trace_id}",
        )
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("Prefect's run does not say that its trace is %s: %s", trace_id, error)


def pages_of(tracking_uri: str) -> str:
    """Where MLflow's pages are, without a password: this stands on Prefect's pages."""
    if tracking_uri.startswith("http"):
        return f"{without_password(tracking_uri)}/#/experiments"
    return "MLflow's pages (`make up` shows where)"
