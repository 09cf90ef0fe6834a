"""Earlier runs: as values, and as the last step of a run writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.history import PastRun
from dspy_toolkit.tracking.runs import record_run

MODEL = "mlx/tiny@01234567"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SAID = {
    "model": MODEL,
    "reflection_model": MODEL,
    "task": "choice",
    "optimizer": "gepa",
    "winner": "gepa",
    "budget": "light",
    "start": "",
    "search": "s1",
    "profile": {"baseline": 0.25, "graded": False, "feedback": True, "predictors": 1, "train": 30, "val": 24},
}
MEASURED = {"val_gain": 0.5, "predicted_lm_calls": 280, "compile_lm_calls": 281}


def record(
    settings: Settings, project: str = "colours", leave_out: str = "", outcome: str | None = "refused", **said: Any
) -> str:
    """A run as the last step writes it, without what is named in `leave_out`."""
    said.setdefault("winner", said.get("optimizer", SAID["optimizer"]))
    params = {name: value for name, value in (SAID | said).items() if name != leave_out}
    metrics = {name: value for name, value in MEASURED.items() if name != leave_out}
    return record_run(
        settings, project, f"optimize {project}", params, metrics, tags={"outcome": outcome} if outcome else {}
    )


def past(optimizer: str = "bootstrap", val_gain: float | None = 0.1, number: int = 0, **changes: Any) -> PastRun:
    """A run like the toy's, made on day `number`."""
    values: dict[str, Any] = {
        "run_id": f"run{number}",
        "project": "colours",
        "when": BEGIN + timedelta(days=number),
        "model": MODEL,
        "reflection_model": MODEL,
        "task": "choice",
        "optimizer": optimizer,
        "winner": optimizer,
        "budget": "light",
        "start": "",
        "baseline": 0.2,
        "graded": False,
        "feedback": True,
        "predictors": 1,
        "train": 30,
        "val": 24,
        "val_gain": val_gain,
        "sealed_gain": None,
        "sealed_low": None,
        "sealed_high": None,
        "predicted_lm_calls": 280,
        "lm_calls": 281,
        "outcome": "refused",
        "search": f"search{number}",
    }
    return PastRun(**values | changes)
