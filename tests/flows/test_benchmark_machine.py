"""The machine's figures in Prefect, from a fake engine that becomes slow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import throughput
from dspy_toolkit.tracking.machine import NAME

pytestmark = pytest.mark.usefixtures("prefect_server")


def artifact(key: str) -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger warns of. Prefect takes the root logger's handlers away, pytest's among them."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


def test_figures_are_kept_and_a_fall_is_warned_of(
    playground: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id
    from flows.benchmark_machine import benchmark_machine

    monkeypatch.setattr(throughput, "COPIED", 2**20)
    monkeypatch.setattr(throughput, "CPU_SIDE", 64)
    # The hardware's own rates of so small a size say nothing, and must not warn.
    monkeypatch.setattr("tasks.measurement.measure_rates", lambda: throughput.Rates(flops=1e11, bytes=1e10))
    playground.engine._function = lambda request: (
        {"drawer": "timber"} if "drawer" in request.messages[0].content else {"answer": "A board."}
    )
    playground.engine._seconds = 0.0
    assert benchmark_machine(requests=4) == ()
    assert not artifact("machine-warning")

    playground.engine._seconds = 0.02
    with warnings_of("dspy_toolkit.tracking.machine") as said:
        falls = benchmark_machine(requests=4)
    assert {"cold_prefix", "warm_prefix", "free_text"} <= {fall.figure.name for fall in falls}
    assert {fall.runs for fall in falls} == {1}
    assert sorted(said) == sorted(fall.sentence for fall in falls)
    assert "median before" in capsys.readouterr().out
    (warning,) = artifact("machine-warning")
    assert "the median of 1 earlier run on this machine" in warning.data
    assert len(artifact("machine-figures")) == 2

    settings = playground.settings
    client = connect(settings)
    first, second = sorted(client.search_runs([experiment_id(client, settings)]), key=lambda run: run.info.start_time)
    assert first.data.tags["project"] == second.data.tags["project"] == NAME
    assert first.data.tags["machine"] == second.data.tags["machine"]
    assert first.data.tags["fallen"] == ""
    assert "warm_prefix" in second.data.tags["fallen"]
    assert first.data.metrics["warm_prefix"] > second.data.metrics["warm_prefix"] > 0
    assert second.data.metrics["matrix_product"] == 100
