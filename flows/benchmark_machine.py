"""Measure how fast the engine is on this machine, and warn when it is clearly slower than it used to be.

python -m flows.benchmark_machine
"""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from benchmarks.throughput import REQUESTS
from dspy_toolkit.tracking.machine import Regression
from flows.temporary_server import watch_run
from tasks.measurement import measure_machine, record_measurement


@flow(flow_run_name="benchmark this machine", on_running=[watch_run])
def benchmark_machine(requests: int = REQUESTS) -> tuple[Regression, ...]:
    """Measure this machine, keep the figures in MLflow, and return those that fell by a fifth or more.

    Args:
        requests: of each burst. Runs with another number are not compared with.
    """
    measurement = measure_machine(requests)
    return record_measurement(measurement, flow_run.get_name() or "benchmark this machine")


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(benchmark_machine)
