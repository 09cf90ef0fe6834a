"""A share of the requests in MLflow, at an OTLP collector, and in the traces of a remote model's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import connect
from tests.lm.openai_server import OpenAIServer
from tests.serving.conftest import fake, running, serving, wait_for
from tests.tracking.test_traces import collector

ROOT = Path(__file__).parents[2]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STREAM = "/v1/programs/questions/stream"


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
    client = connect(promoted)
    trace = wait_for(lambda: client.get_trace(found["trace_id"]))
    assert trace.info.client_request_id == found["request_id"] and trace.info.tags["traceparent"] == PARENT
    spans = {span.name: span for span in trace.data.spans}
    own = f"00-{found['trace_id'].removeprefix('tr-')}-{spans['questions'].span_id}-01"
    assert said.headers["traceparent"] == own
    assert {"questions", "LM"} <= spans.keys()
    assert spans["questions"].inputs == {"text": "Who?"} and spans["questions"].outputs == {"label": "person"}
    assert spans["LM"].parent_id is not None and "dspy_toolkit.lm.decode_seconds" in spans["LM"].attributes
    assert {each.name: each.value for each in trace.info.assessments} == {"rating": 1.0, "label": "number"}


def test_a_streamed_request_has_the_engine_in_its_trace(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.01)
    with running(serving(settings, trace_share=1.0)) as server:
        said = server.http.post(STREAM, json={"text": "Who?"}).text
    last = json.loads(said[said.rindex("data: ") :].removeprefix("data: "))
    assert last["timings"]["decode_seconds"] >= 0.02, "one entry of timings a call, as of a reply in one piece"
    trace = wait_for(lambda: connect(promoted).get_trace(last["trace_id"]))
    (call,) = [span for span in trace.data.spans if span.name == "LM"]
    below = [span.name for span in trace.data.spans if span.parent_id == call.span_id]
    assert below == ["engine queue", "engine prefill", "engine decode"]
    assert call.attributes["dspy_toolkit.lm.decode_seconds"] == last["timings"]["decode_seconds"]


def test_nothing_is_traced_unless_asked(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    before = mlflow.get_tracking_uri()
    with running(settings) as server:
        said = server.ask(text="Who?", headers={"traceparent": "nonsense"})
    assert "trace_id" not in said.json() and mlflow.get_tracking_uri() == before
    assert said.headers["traceparent"].startswith("00-")


class Remote(OpenAIServer):
    """A server of a model that notes the W3C context of each request."""

    def __enter__(self) -> Remote:
        super().__enter__()
        self.contexts: list[str | None] = []
        server: Any = self._http
        kind, contexts = server.RequestHandlerClass, self.contexts

        class Noting(kind):
            def do_POST(self) -> None:
                contexts.append(self.headers.get("traceparent"))
                super().do_POST()

        server.RequestHandlerClass = Noting
        return self


def asking(settings: Settings, remote: Remote, **changes: Any) -> Settings:
    """Settings whose programs ask a remote model."""
    lm = settings.lm.model_copy(update={"model": "openai/NAME", "api_base": remote.address})
    return serving(settings.model_copy(update={"lm": lm}), fall_back_on=(), **changes)


def test_a_remote_model_is_told_the_span_of_its_call(promoted: Settings) -> None:
    with Remote(lambda _: {"label": "person"}) as remote, running(asking(promoted, remote, trace_share=1.0)) as server:
        whole = server.ask(text="Who?", headers={"traceparent": PARENT}).json()
        said = server.http.post(STREAM, json={"text": "Who else?"}).text
        streamed = json.loads(said[said.rindex("data: ") :].removeprefix("data: "))
        cached = server.ask(text="Who?").json()
    assert cached["cached"] and len(remote.contexts) == 2, "another context makes no other request of it"
    for reply, context in zip((whole, streamed), remote.contexts, strict=True):
        trace = wait_for(lambda reply=reply: connect(promoted).get_trace(reply["trace_id"]))
        (call,) = [span for span in trace.data.spans if span.name == "LM"]
        assert context == f"00-{reply['trace_id'].removeprefix('tr-')}-{call.span_id}-01"


def test_a_remote_model_is_told_the_callers_context_where_nothing_is_traced(promoted: Settings) -> None:
    with Remote(lambda _: {"label": "person"}) as remote, running(asking(promoted, remote)) as server:
        replies = [
            server.ask(text=f"Who {number}?", headers={"traceparent": given} if given else None)
            for number, given in enumerate((PARENT, None, "nonsense"))
        ]
    assert [each.status_code for each in replies] == [200] * 3
    assert remote.contexts == [PARENT, None, None]
    assert replies[0].headers["traceparent"] == PARENT


CHILD = """
import json
import sys
from dspy_toolkit.settings import load_settings
from tests.serving.conftest import fake, running, serving
settings, _ = fake(load_settings(home=sys.argv[1]), lambda _: {"label": "person"})
with running(serving(settings, trace_share=1.0)) as server:
    print(json.dumps([server.ask(text=f"Who {number}?").json() for number in range(2)]))
"""


def served_with(settings: Settings, address: str) -> tuple[list[Any], str]:
    """Two traced replies of a server whose environment names an OTLP endpoint, and what it logged."""
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{address}/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(settings.path())],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1]), ended.stderr


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_without_the_exporter_a_request_is_answered_and_has_no_trace(promoted: Settings) -> None:
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:
        pytest.skip("The package is installed here.")
    replies, log = served_with(promoted, "http://127.0.0.1:9")
    assert [reply["prediction"] for reply in replies] == [{"label": "person"}] * 2
    assert not any("trace_id" in reply for reply in replies)
    assert log.count("opentelemetry-exporter-otlp-proto-http") == 1


@pytest.mark.timeout(600)
def test_a_traced_request_reaches_a_collector(promoted: Settings) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="pip install opentelemetry-exporter-otlp-proto-http"
    )
    with collector() as (address, received):
        replies, _ = served_with(promoted, address)
    assert {f"tr-{span.trace_id.hex()}" for span in received} == {reply["trace_id"] for reply in replies}
    assert {"questions", "LM", "engine decode"} <= {span.name for span in received}
    trace = connect(promoted).get_trace(replies[0]["trace_id"])
    assert {"questions", "LM", "engine decode"} <= {span.name for span in trace.data.spans}
