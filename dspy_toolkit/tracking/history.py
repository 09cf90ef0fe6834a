"""Earlier optimizations, read back from MLflow: what each was given, what it gained and what it cost.

A run counts when it ended in a decision. Runs of older versions of the toolkit, which recorded less, are left out, and
their number is reported.

Not covered: writing (`dspy_toolkit.pipeline.record`), what follows from the runs
(`dspy_toolkit.optimizers.plan.similar_runs`), and measurements of the machine (`dspy_toolkit.tracking.machine`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import AwareDatetime, Field, ValidationError

from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.mlflow_client import all_pages, exists, session
from dspy_toolkit.tracking.runs import PROJECT_TAG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run as RunEntity

    from dspy_toolkit.settings import Settings

MOST_RUNS = 500
"""Runs read by default: more than a year of nightly runs of one project."""
_PAGE = 200


class PastRun(Frozen):
    """One optimization that ended in a decision. Scores and gains are shares in [0, 1] and their differences."""

    run_id: str
    project: str
    when: AwareDatetime
    model: str
    """The task model, with its weights hash."""
    reflection_model: str
    """The same of the model that writes instructions."""
    task: str
    """`choice`, `number`, `text`, `record` or `open`; see `pipeline.record.task_kind`."""
    optimizer: str
    """The optimizer that ran; `none` where there was nothing to gain."""
    winner: str
    """The optimizer that made the program: the winner of a race, `baseline` where the baseline won it."""
    budget: str
    start: str
    """The program that the search started from; empty for the project's own."""
    baseline: float = Field(ge=0, le=1)
    """The baseline's score in the probe."""
    graded: bool
    feedback: bool
    predictors: int
    train: int
    """Rows."""
    val: int
    """Rows."""
    val_gain: float | None
    """Of the compiled program over the baseline, on the validation rows; None when nothing was scored."""
    sealed_gain: float | None
    """Over the champion; None when the sealed rows were not opened."""
    sealed_low: float | None
    sealed_high: float | None
    predicted_lm_calls: int
    """Logical."""
    lm_calls: int
    """Logical calls that compiling spent."""
    outcome: str
    """`promoted`, `refused` or `unchanged`; `compared` for a race that stopped before the sealed test."""
    search: str
    """Equal for runs whose compilation was the same (the later ones came from the cache)."""


class History(NamedTuple):
    """What `read_history` found."""

    runs: tuple[PastRun, ...]
    """The newest first."""
    left_out: int
    """Runs that an older toolkit recorded, without all fields of a `PastRun`."""


def read_history(settings: Settings, *, project: str | None = None, limit: int = MOST_RUNS) -> History:
    """The newest recorded optimizations. Reading writes nothing: without a database there are none.

    Args:
        settings: the home, and the experiment's name.
        project: a project's name; all projects by default.
        limit: at most so many runs, from 1.

    Raises:
        RegistryError: MLflow cannot be read.
    """
    if not exists(settings):
        return History((), 0)
    runs: list[PastRun] = []
    left_out = 0
    with session(settings, "The history could not be read") as mlflow:
        for entity in _decided(mlflow, settings, project):
            if len(runs) == limit:
                break
            if (run := _past_run(entity)) is None:
                left_out += 1
            else:
                runs.append(run)
    return History(tuple(runs), left_out)


def _decided(mlflow: MlflowClient, settings: Settings, project: str | None) -> Iterator[RunEntity]:
    """The runs of the experiment that ended in a decision, the newest first."""
    experiment = mlflow.get_experiment_by_name(settings.registry.experiment)
    if experiment is None:
        return
    # Only a decision has this tag: not the first version of a project, nor a measurement of the machine.
    wanted = "attributes.status = 'FINISHED' and tags.outcome LIKE '%'"
    found = all_pages(
        mlflow.search_runs,
        [experiment.experiment_id],
        filter_string=wanted,
        max_results=_PAGE,
        order_by=["attributes.start_time DESC"],
    )
    # Not in the filter: a name that a user types must not become part of a query.
    yield from (run for run in found if project is None or run.data.tags.get(PROJECT_TAG) == project)


def _past_run(entity: RunEntity) -> PastRun | None:
    """The run as a value; None when a field is missing or cannot be read."""
    params, metrics, tags = entity.data.params, entity.data.metrics, entity.data.tags
    profile = {name.removeprefix("profile."): value for name, value in params.items() if name.startswith("profile.")}
    known: dict[str, Any] = {
        "run_id": entity.info.run_id,
        "project": tags.get(PROJECT_TAG),
        "when": datetime.fromtimestamp(entity.info.start_time / 1000, UTC),
        **{name: params.get(name) for name in ("model", "reflection_model", "task", "optimizer", "winner")},
        **{name: params.get(name) for name in ("budget", "start", "search")},
        **{name: profile.get(name) for name in ("baseline", "graded", "feedback", "predictors", "train", "val")},
        "val_gain": metrics.get("val_gain"),
        "sealed_gain": metrics.get("sealed_delta"),
        "sealed_low": metrics.get("sealed_delta_low"),
        "sealed_high": metrics.get("sealed_delta_high"),
        "predicted_lm_calls": metrics.get("predicted_lm_calls"),
        "lm_calls": metrics.get("compile_lm_calls"),
        "outcome": tags.get("outcome"),
    }
    try:
        return PastRun.model_validate(known)
    except ValidationError:
        return None
