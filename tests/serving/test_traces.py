"""A share of the requests in MLflow."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest

from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import connect
from tests.serving.conftest import fake, running, serving, wait_for

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def mlflow_as_it_was() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def test_a_trace_has_the_spans_the_context_and_the_feedback(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    with running(serving(settings, trace_share=1.0)) as server:
        said = server.ask(text="Who?", headers={"traceparent": PARENT})
        found = said.json()
        mlflow.flush_trace_async_logging()
        server.http.post(
            "/v1/feedback", json={"request_id": found["request_id"], "rating": 1, "labels": {"label": "number"}}
        )
    assert said.headers["traceparent"].split("-")[1] == PARENT.split("-")[1]
    client = connect(promoted)
    trace = wait_for(lambda: client.get_trace(found["trace_id"]))
    assert trace.info.client_request_id == found["request_id"] and trace.info.tags["traceparent"] == PARENT
    spans = {span.name: span for span in trace.data.spans}
    assert {"questions", "LM"} <= spans.keys()
    assert spans["questions"].inputs == {"text": "Who?"} and spans["questions"].outputs == {"label": "person"}
    assert spans["LM"].parent_id is not None and "dspy_toolkit.lm.decode_seconds" in spans["LM"].attributes
    assert {each.name: each.value for each in trace.info.assessments} == {"rating": 1.0, "label": "number"}


def test_nothing_is_traced_unless_asked(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    before = mlflow.get_tracking_uri()
    with running(settings) as server:
        said = server.ask(text="Who?", headers={"traceparent": "nonsense"})
    assert "trace_id" not in said.json() and mlflow.get_tracking_uri() == before
    assert said.headers["traceparent"].startswith("00-")
