"""A flow's run and its trace name each other."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest
from prefect.client.orchestration import get_client

from flows.optimize_program import optimize_program
from tasks.tracing import pages_of
from tests.flows.conftest import Playground
from tests.tracking.test_traces import spans_of


@pytest.fixture
def mlflow_as_it_was() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("prefect_server", "mlflow_as_it_was")
def test_a_run_and_its_trace_name_each_other(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_OBSERVE__TRACE", "true")
    state = optimize_program(project=playground.location, dry_run=True, return_state=True)
    assert state.is_completed() and state.state_details.flow_run_id is not None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    (found,) = [tag.removeprefix("trace:") for tag in run.tags if tag.startswith("trace:")]
    trace, spans = spans_of(playground.settings, found)
    assert trace.info.tags["prefect.flow_run_id"] == str(run.id)
    (root,) = spans[run.name]
    for step in ("resolve", "prepare", "probe", "select"):
        assert [span.parent_id for span in spans[step]] == [root.span_id]
    assert spans["LM"] and len(spans["engine decode"]) == len(spans["LM"])


def test_a_password_of_mlflows_address_stands_on_no_page_of_prefect() -> None:
    said = pages_of("https://ada:opensesame@mlflow.example:5000")
    assert "mlflow.example:5000/#/experiments" in said and "opensesame" not in said
