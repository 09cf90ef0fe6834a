"""What monitoring has seen of live programs, in MLflow: one run a look, tagged, so that its figures are a series.

Not covered: looking (`dspy_toolkit.monitoring.watching`), and optimizations (`dspy_toolkit.tracking.history`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.tracking.mlflow_client import exists, session
from dspy_toolkit.tracking.runs import PROJECT_TAG, record_run

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

TAG = "look"
"""The tag of such runs; its value is the version that was looked at."""
MOST = 200


class PastLook(NamedTuple):
    """One look, read back."""

    when: datetime
    version: str
    metrics: dict[str, float]
    drifted: str


def keep_look(settings: Settings, found: Any, name: str) -> str:
    """Write a look down, and return its MLflow run's id.

    Args:
        settings: where to.
        found: a `dspy_toolkit.monitoring.watching.Watch`.
        name: the run's name.

    Raises:
        RegistryError: it could not be written.
    """
    drifted = ", ".join(f"{each.field} {each.kind}" for each in found.drift if each.drifted)
    return record_run(
        settings,
        found.project,
        name,
        {"version": found.version},
        dict(_figures(found)),
        {"watch.json": found.model_dump_json(indent=2)},
        {TAG: found.version, "drifted": drifted, "fallen": "confirmed" if found.confirmed else found.suspected},
    )


def past_looks(settings: Settings, project: str, limit: int = MOST) -> list[PastLook]:
    """The newest looks at a project's programs, the oldest first.

    Raises:
        RegistryError: MLflow cannot be read.
    """
    if not exists(settings):
        return []
    with session(settings, "The looks of monitoring could not be read") as mlflow:
        experiment = mlflow.get_experiment_by_name(settings.registry.experiment)
        if experiment is None:
            return []
        runs = mlflow.search_runs(
            [experiment.experiment_id],
            filter_string=f"attributes.status = 'FINISHED' and tags.{TAG} LIKE '%'",
            max_results=1000,
            order_by=["attributes.start_time DESC"],
        )
    # Not in the filter: a name that a user types must not become part of a query.
    mine = [run for run in runs if run.data.tags.get(PROJECT_TAG) == project][:limit]
    return [
        PastLook(
            datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            run.data.tags[TAG],
            dict(run.data.metrics),
            run.data.tags.get("drifted", ""),
        )
        for run in reversed(mine)
    ]


def _figures(found: Any) -> Iterator[tuple[str, float | None]]:
    for name, fall in (("served", found.served), ("fresh", found.fresh)):
        if fall is not None:
            yield f"{name}_mean", fall.mean
            yield f"{name}_high", fall.high
            yield f"{name}_rows", fall.n
            yield f"{name}_e_value", min(fall.e_value, 1e12)
            yield f"{name}_e_value_beyond_chance", min(fall.e_value_beyond_chance, 1e12)
    yield "reference", found.reference
    for name in ("replies", "labelled", "liked", "parse_failures", "seconds_median", "seconds_p95"):
        yield name, getattr(found, name)
    yield "asked_again", found.asked_again
    yield "otherwise", found.otherwise
    yield "drifted_fields", len({each.field for each in found.drift if each.drifted})
    if found.calibration is not None:
        yield "calibration_error", found.calibration.error
        yield "brier", found.calibration.brier
