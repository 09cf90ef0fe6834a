"""The optimizations of one project over time, read back from MLflow: scores as they were, cost, levers, promotions.

`dspy_toolkit.tracking.history` reads what a choice of an optimizer needs, gains above all; this reads what a person wants to see
beside each other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dspy_toolkit.tracking.mlflow_client import all_pages, exists, session
from dspy_toolkit.tracking.runs import PROJECT_TAG

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

MOST = 200
DECISIONS = ("promoted", "refused", "unchanged")


def projects_with_nights(settings: Settings) -> list[str]:
    """The projects of which an optimization that came to a decision is recorded. Raises RegistryError."""
    return sorted({run.data.tags.get(PROJECT_TAG, "") for run in _decided(settings, None, MOST * 5)})


def past_nights(settings: Settings, project: str, limit: int = MOST) -> list[dict[str, Any]]:
    """The newest `limit` optimizations of a project that came to a decision, the oldest first.

    Returns:
        The fields of `dspy_toolkit.report.over_time.Night`, each None or empty where it was not recorded.

    Raises:
        RegistryError: MLflow cannot be read.
    """
    return [_night(run) for run in reversed(_decided(settings, project, limit))]


def _decided(settings: Settings, project: str | None, limit: int) -> list[Any]:
    """The newest runs that came to a decision, the newest first."""
    if not exists(settings):
        return []
    found: list[Any] = []
    with session(settings, "The optimizations could not be read") as mlflow:
        experiment = mlflow.get_experiment_by_name(settings.registry.experiment)
        if experiment is None:
            return []
        runs = all_pages(
            mlflow.search_runs,
            [experiment.experiment_id],
            filter_string="attributes.status = 'FINISHED' and tags.outcome LIKE '%'",
            max_results=200,
            order_by=["attributes.start_time DESC"],
        )
        for run in runs:
            # Not in the filter: a name that a user types must not become part of a query.
            if project in (None, run.data.tags.get(PROJECT_TAG)) and run.data.tags.get("outcome") in DECISIONS:
                found.append(run)
            if len(found) == limit:
                break
    return found


def _night(run: Any) -> dict[str, Any]:
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    optimizer, winner = params.get("optimizer", ""), params.get("winner", "")
    promoted = tags["outcome"] == "promoted"
    return {
        "run_id": run.info.run_id,
        "when": datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        "outcome": tags["outcome"],
        "optimizer": optimizer if winner in ("", optimizer) else f"{optimizer}: {winner}",
        "levers": params.get("levers", ""),
        "version": tags.get("version", "") if promoted else "",
        "lm_calls": int(metrics.get("compile_lm_calls", 0)),
        "tokens": int(metrics.get("compile_prompt_tokens", 0) + metrics.get("compile_completion_tokens", 0)),
        "seconds": metrics.get("compile_seconds", 0.0),
        "val": metrics.get("val_candidate"),
        "sealed": metrics.get("sealed_candidate"),
        "champion": metrics.get("sealed_champion"),
        "delta": metrics.get("sealed_delta"),
        "low": metrics.get("sealed_delta_low"),
        "high": metrics.get("sealed_delta_high"),
        "reason": tags.get("reason", ""),
    }
