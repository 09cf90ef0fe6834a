"""A machine's own figures over time: kept in MLflow, and compared with earlier ones of the same machine.

Covered: what makes two measurements comparable, the verdict on a new one, reading and writing them. One measurement is
one MLflow run, tagged with the machine and the model.

Not covered: measuring (`benchmarks.throughput`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal

from dspy_toolkit.store import Frozen, digest
from dspy_toolkit.tracking.mlflow_client import experiment_id, session
from dspy_toolkit.tracking.runs import PROJECT_TAG, record_run

if TYPE_CHECKING:
    from dspy_toolkit.lm.models.hardware import Hardware
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

NAME = "machine"
"""The value of the project tag on these runs, which belong to no project."""
FALLEN_BY = 0.2
"""The loss, as a share of the median, from which a figure is reported."""
REMEMBERED = 100
"""The number of earlier runs that count, the latest ones: two years of weekly runs."""


class Figure(Frozen):
    """One measured number."""

    name: str
    """Lower case with underscores; the same from run to run."""
    value: float
    unit: str
    better: Literal["higher", "lower"] = "higher"


class Conditions(Frozen):
    """What two measurements must have in common to be comparable."""

    system: str
    chip: str
    cores: int
    memory_gb: int
    """Rounded: kernels keep a different few megabytes for themselves."""
    device: str
    model: str
    """With its weights' hash."""
    batch_size: int
    requests: int
    """Requests of each burst: in a longer one, more requests share the cost of the prefix."""

    @property
    def id(self) -> str:
        """Twelve hex digits. The host's name is not in it: a container has a new one each time."""
        return digest(self)[:12]


class Measurement(Frozen):
    """The figures of one run."""

    conditions: Conditions
    figures: tuple[Figure, ...]


class Regression(Frozen):
    """A figure that is clearly worse than it used to be."""

    figure: Figure
    median: float
    """Of the earlier runs."""
    runs: int
    """How many there were."""

    @property
    def sentence(self) -> str:
        """For people."""
        figure = self.figure
        return (
            f"{figure.name} is {figure.value:.3g} {figure.unit}; the median of {self.runs} earlier "
            f"{'run' if self.runs == 1 else 'runs'} on this machine is {self.median:.3g}."
        )


def identify(hardware: Hardware, model: str, batch_size: int, requests: int) -> Conditions:
    """This machine with this model and task. Package versions are not in it: a slower version is just what should be found."""
    return Conditions(
        system=hardware.system,
        chip=hardware.chip,
        cores=hardware.cores,
        memory_gb=round(hardware.memory_bytes / 2**30),
        device=hardware.device,
        model=model,
        batch_size=batch_size,
        requests=requests,
    )


def find_regressions(
    figures: Iterable[Figure], history: Mapping[str, Sequence[float]], by: float = FALLEN_BY
) -> tuple[Regression, ...]:
    """The figures that are worse than the median of their history by the share `by` or more.

    Args:
        figures: the new ones.
        history: name → values of earlier runs on the same machine, in any order; a figure without any is not compared.
        by: in (0, 1). For a figure where lower is better, the inverse is compared.
    """
    regressions = []
    for figure in figures:
        earlier = [value for value in history.get(figure.name, ()) if math.isfinite(value) and value > 0]
        if not earlier:
            continue
        usual = median(earlier)
        new, old = (figure.value, usual) if figure.better == "higher" else (usual, figure.value)
        # Room for rounding: exactly a fifth less counts as a regression.
        if new <= (1 - by) * old * (1 + 1e-9):
            regressions.append(Regression(figure=figure, median=usual, runs=len(earlier)))
    return tuple(regressions)


def past_figures(settings: Settings, conditions: Conditions) -> dict[str, list[float]]:
    """Name → values of the earlier measurements under `conditions`, the newest first.

    Raises:
        RegistryError: MLflow cannot be read.
    """
    history: dict[str, list[float]] = {}
    with session(settings, "The earlier measurements of this machine could not be read") as mlflow:
        runs = mlflow.search_runs(
            [experiment_id(mlflow, settings)],
            filter_string=f"tags.{PROJECT_TAG} = '{NAME}' and tags.machine = '{conditions.id}' "
            "and attributes.status = 'FINISHED'",
            max_results=REMEMBERED,
            order_by=["attributes.start_time DESC"],
        )
    for run in runs:
        for name, value in run.data.metrics.items():
            history.setdefault(name, []).append(value)
    return history


def keep(settings: Settings, measurement: Measurement, regressions: Sequence[Regression], run_name: str) -> str:
    """Write a measurement and its regressions into MLflow, log a warning for each regression, and return the run's id.

    Raises:
        RegistryError: it could not be written.
    """
    for regression in regressions:
        log.warning("%s", regression.sentence)
    units = {figure.name: figure.unit for figure in measurement.figures}
    return record_run(
        settings,
        NAME,
        run_name,
        {**measurement.conditions.model_dump(), "units": units},
        {figure.name: figure.value for figure in measurement.figures},
        tags={
            "machine": measurement.conditions.id,
            "fallen": ", ".join(regression.figure.name for regression in regressions),
        },
    )
