"""Measuring this machine, and comparing the figures with earlier ones."""

from __future__ import annotations

import socket

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from benchmarks.throughput import measure_engine, measure_rates
from dspy_toolkit.display.progress import step
from dspy_toolkit.display.summary import print_figures
from dspy_toolkit.lm import connect
from dspy_toolkit.lm.models.hardware import inspect_hardware
from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.machine import (
    Figure,
    Measurement,
    Regression,
    find_regressions,
    identify,
    keep,
    past_figures,
)
from tasks.events import tell
from tasks.policy import RETRYING, accelerator
from tasks.show import place_of


@task(task_run_name="measure this machine", cache_policy=NO_CACHE, **RETRYING)
def measure_machine(requests: int) -> Measurement:
    """Measure the hardware's rates, then the engine's figures, with no other run on the accelerator."""
    settings = load_settings()
    with accelerator(), step("measure") as reporter:
        connection = connect(settings)
        rates = measure_rates()
        figures = (
            Figure(name="matrix_product", value=rates.flops / 1e9, unit="GFLOP/s"),
            Figure(name="memory_copy", value=rates.bytes / 1e9, unit="GB/s"),
            *measure_engine(connection, requests=requests, progress=reporter.calls),
        )
    conditions = identify(inspect_hardware(), connection.model, settings.lm.batch_size, requests)
    return Measurement(conditions=conditions, figures=figures)


@task(task_run_name="record this machine's figures", cache_policy=NO_CACHE, **RETRYING)
def record_measurement(measurement: Measurement, name: str) -> tuple[Regression, ...]:
    """Write the figures into MLflow, and warn of those that have fallen."""
    settings, conditions = load_settings(), measurement.conditions
    with step("record"):
        history = past_figures(settings, conditions)
        regressions = find_regressions(measurement.figures, history)
        keep(settings, measurement, regressions, name)
    names = {regression.figure.name for regression in regressions}
    create_table_artifact(
        [
            {
                "figure": figure.name,
                "value": f"{figure.value:.3g} {figure.unit}",
                "earlier runs": len(history.get(figure.name, ())),
                "verdict": "fallen" if figure.name in names else "",
            }
            for figure in measurement.figures
        ],
        key="machine-figures",
        description=f"{conditions.chip}, {conditions.cores} cores, {conditions.model}",
    )
    if regressions:
        create_markdown_artifact(
            "## Slower than before\n\n" + "\n".join(f"- {regression.sentence}" for regression in regressions),
            key="machine-warning",
            description="Figures that fell by a fifth or more below this machine's median",
        )
        said = " ".join(regression.sentence for regression in regressions)
        look = place_of("machine-warning")
        tell("engine-slow", socket.gethostname(), said, look=look, command="dspy-toolkit doctor")
    print_figures(measurement, history, regressions)
    return regressions
