"""A run that is killed between its promotion and its record: the next one records it, as if nothing had happened."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.pipeline.record import record
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.registry import champion
from dspy_toolkit.run import Run
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import session
from tests.optimizers.benches import Bench
from tests.tracking.dying import die


@pytest.fixture
def bench(home: Settings, tmp_path: Path) -> Bench:
    return Bench(home, tmp_path / "project")


@pytest.fixture
def found(bench: Bench) -> Run:
    release_baseline(bench.context(), bench.resolve())
    run = bench.find()
    assert run.comparison.outcome == "promoted"
    return run


def recorded(settings: Settings, run_id: str) -> dict[str, Any]:
    """What stands in MLflow of a run, but for times and names."""
    with session(settings, "test") as mlflow:
        run = mlflow.get_run(run_id)
        metrics = {name: [m.value for m in mlflow.get_metric_history(run_id, name)] for name in run.data.metrics}
        files = sorted(file.path for file in mlflow.list_artifacts(run_id))
    tags = {name: run.data.tags[name] for name in ("outcome", "reason", "version", "project")}
    return {"status": run.info.status, "params": run.data.params, "metrics": metrics, "files": files, "tags": tags}


def sql(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(settings.path("mlflow.db"))) as database:
        database.execute(statement)
        database.commit()


def test_a_promotion_without_a_record_is_recorded_by_the_next_run(
    bench: Bench, found: Run, caplog: pytest.LogCaptureFixture
) -> None:
    settings = bench.toy.settings
    released = bench.release(found)
    run_id = released.decision.run_id
    assert run_id is not None
    die(settings)  # here the process was killed
    ref = bench.resolve()
    assert ref.champion.version == released.decision.version == 2
    assert any("cut off after its promotion" in record.getMessage() for record in caplog.records)
    seen = recorded(settings, run_id)
    assert seen["status"] == "FINISHED" and seen["tags"]["outcome"] == "promoted"
    record(bench.context(), released)  # as an undisturbed run writes it: nothing more, nothing twice
    assert recorded(settings, run_id) == seen
    caplog.clear()
    bench.resolve()
    assert not caplog.records


@pytest.mark.soak
def test_a_record_that_broke_off_half_way_is_completed(bench: Bench, found: Run) -> None:
    settings = bench.toy.settings
    released = bench.release(found)
    assert released.decision.run_id is not None
    full = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    sql(settings, f"CREATE TRIGGER full BEFORE INSERT ON tags WHEN NEW.key = 'outcome' {full}")
    with pytest.raises(RegistryError, match="disk is full"):
        record(bench.context(), released)
    die(settings)  # before the promotion was taken back
    sql(settings, "DROP TRIGGER full")
    bench.resolve()
    seen = recorded(settings, released.decision.run_id)
    assert seen["status"] == "FINISHED" and len(seen["metrics"]["trial_val_mean"]) == len(found.compiled.trials)
    assert champion(settings, "colours").version == 2


def test_what_it_measured_is_gone(bench: Bench, found: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The store was emptied: the run is closed with what can be had."""
    settings = bench.toy.settings
    released = bench.release(found)
    die(settings)
    bench.toy.store.delete(found.dataset.report)
    bench.resolve()
    with session(settings, "test") as mlflow:
        run = mlflow.get_run(str(released.decision.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags["outcome"] == "promoted" and run.data.params == {"optimizer": "gepa"}
    assert "recorded without what it measured" in caplog.text
