"""One trace: a run, its steps, programs, calls and the engine; in two processes, in MLflow and over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import mlflow
import pytest

from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection
from dspy_toolkit.tracking.mlflow_client import connect
from dspy_toolkit.tracking.traces import VARIABLE, run_trace, step_trace, trace_id, traceparent

ROOT = Path(__file__).parents[2]
ENGINE = ["engine queue", "engine prefill", "engine decode"]


@pytest.fixture(autouse=True)
def mlflow_as_it_was() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def traced(home: Settings) -> Settings:
    return home.model_copy(update={"observe": home.observe.model_copy(update={"trace": True})})


def spans_of(settings: Settings, found: str) -> tuple[Any, dict[str, list[Any]]]:
    """A trace, and its spans by name."""
    trace = connect(settings).get_trace(found)
    named: dict[str, list[Any]] = {}
    for span in trace.data.spans:
        named.setdefault(span.name, []).append(span)
    return trace, named


def ask(settings: Settings, rows: int) -> None:
    """Evaluate a program, on threads as a step does."""
    connection = fake_connection(lambda _: {"label": "number"}, settings)
    cases = [dspy.Example(text=f"row {n}", label="number").with_inputs("text") for n in range(rows)]
    score_rows(
        dspy.Predict("text -> label"), cases, exact_match, keys=[f"{n}" for n in range(rows)],
        split="val", lm=connection.lm, adapter=connection.adapter, threads=4,
    )  # fmt: skip


def test_a_run_is_one_trace_down_to_the_engine(traced: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspy_toolkit.tracking.traces.RUNS", 3)
    with run_trace(traced, "optimize it", {"prefect.flow_run_id": "4711"}) as found:
        assert found is not None and found == trace_id()
        with step_trace("probe"):
            ask(traced, 5)
        with step_trace("compare", texts=False):
            ask(traced, 2)
    trace, spans = spans_of(traced, found)
    assert trace.info.tags["prefect.flow_run_id"] == "4711"
    (root,), (probe,), (compare,) = spans["optimize it"], spans["probe"], spans["compare"]
    assert root.parent_id is None and probe.parent_id == compare.parent_id == root.span_id
    assert [each.parent_id for each in spans["Predict"]].count(probe.span_id) == 3, "the first ones of a step"
    programs = {each.span_id: each for each in spans["Predict"]}
    assert len(spans["LM"]) == len(programs) == 5 and all(each.parent_id in programs for each in spans["LM"])
    for each in spans["LM"]:
        below = [span.name for name in ENGINE for span in spans[name] if span.parent_id == each.span_id]
        assert below == ENGINE and each.attributes["dspy_toolkit.lm.decode_seconds"] >= 0
    seen = {program.parent_id: program.inputs for program in programs.values()}
    assert "row" in str(seen[probe.span_id]) and seen[compare.span_id] is None, "sealed rows stay sealed"


def test_nothing_is_traced_unless_asked_and_a_registry_that_is_away_stops_no_run(
    home: Settings, traced: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with run_trace(home, "a run", {}) as found, step_trace("a step"):
        assert (found, trace_id(), traceparent()) == (None, None, None)
    client = connect(home)
    client.delete_experiment(client.create_experiment("gone"))
    gone = traced.model_copy(update={"registry": traced.registry.model_copy(update={"experiment": "gone"})})
    with run_trace(gone, "a run", {}) as found:
        assert found is None
    assert "This run has no trace" in caplog.text


CHILD = """
import sys
from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.traces import run_trace, step_trace
from tests.tracking.test_traces import ask
settings = load_settings(home=sys.argv[1], observe={"trace": True})
with run_trace(settings, "score it", {"prefect.flow_run_id": "4712"}) as found, step_trace("score"):
    ask(settings, 2)
print(found)
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP receiver: its address, and the spans that it got."""
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = proto.ExportTraceServiceRequest()
            asked.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in asked.resource_spans:
                received.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.mark.timeout(1200)
def test_another_process_names_the_trace_that_it_is_a_part_of_and_tells_a_collector(traced: Settings) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="pip install opentelemetry-exporter-otlp-proto-http"
    )
    with collector() as (address, received), run_trace(traced, "optimize it", {}) as found, step_trace("compile"):
        above = traceparent()
        assert found is not None and above is not None
        environment = os.environ | {
            VARIABLE: above,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{address}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, str(traced.path())],
            env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    own = ended.stdout.split()[-1]
    trace, spans = spans_of(traced, own)
    assert trace.info.tags["part_of_trace"] == found and trace.info.tags["prefect.flow_run_id"] == "4712"
    assert len(spans["LM"]) == 2 and len(spans["engine decode"]) == 2
    assert {span.trace_id.hex() for span in received} == {own.removeprefix("tr-")}
    assert {"score it", "score", "Predict", "LM", *ENGINE} <= {span.name for span in received}
