"""One run holds what it was given, from any thread; one that breaks off is marked FAILED; no secret is in it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel, SecretStr

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.settings import LMSettings, RegistrySettings, Settings
from dspy_toolkit.tracking import runs as tracking
from dspy_toolkit.tracking.mlflow_client import connect, exists, mlflow_errors


def run_of(home: Settings, run_id: str) -> Any:
    return connect(home).get_run(run_id)


def file_of(home: Settings, run_id: str, path: str) -> Path:
    return home.path("artifacts", run_id, "artifacts", path)


def only_run(home: Settings) -> Any:
    mlflow = connect(home)
    experiment = mlflow.get_experiment_by_name(home.registry.experiment)
    assert experiment is not None
    (run,) = mlflow.search_runs([experiment.experiment_id])
    return run


def test_a_run_holds_what_it_was_given(home: Settings) -> None:
    run_id = tracking.record_run(
        home,
        "router",
        "optimize router",
        params={"optimizer": "gepa", "budget": {"lm_calls": 300, "seconds": None}, "fields": ["request", "project"]},
        metrics={"sealed": 0.5, "trials": [0.1, 0.3], "not_measured": None, "ok": True},
        artifacts={"program/program.json": '{"text": "é"}', "plot.png": b"\x89PNG"},
        tags={"decision": "promoted"},
        tables={"tables/rows.json": pd.DataFrame({"text": ["a"], "value": [1.0]})},
    )
    run = run_of(home, run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "optimize router"
    assert run.data.params == {
        "optimizer": "gepa",
        "budget.lm_calls": "300",
        "budget.seconds": "None",
        "fields": '["request", "project"]',
    }
    assert run.data.metrics == {"sealed": 0.5, "trials": 0.3, "ok": 1.0}
    assert [(point.step, point.value) for point in connect(home).get_metric_history(run_id, "trials")] == [
        (0, 0.1),
        (1, 0.3),
    ]
    assert run.data.tags["project"] == "router"
    assert run.data.tags["decision"] == "promoted"
    assert file_of(home, run_id, "program/program.json").read_text(encoding="utf-8") == '{"text": "é"}'
    assert file_of(home, run_id, "plot.png").read_bytes() == b"\x89PNG"
    assert json.loads(file_of(home, run_id, "tables/rows.json").read_text()) == {
        "columns": ["text", "value"],
        "data": [["a", 1.0]],
    }
    # What MLflow's pages look for before they show the file as a table.
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/rows.json", "type": "table"}]


def test_an_open_run_is_filled_and_closed(home: Settings) -> None:
    run_id = tracking.open_run(home, "router", "optimize router")
    assert run_of(home, run_id).info.status == "RUNNING"
    assert tracking.record_run(home, "router", "optimize router", {"a": 1}, {}, run_id=run_id) == run_id
    assert run_of(home, run_id).info.status == "FINISHED"
    assert run_of(home, run_id).data.params == {"a": "1"}


def test_more_than_one_batch(home: Settings) -> None:
    run_id = tracking.record_run(
        home,
        "router",
        "wide",
        params={f"p{n}": "x" * 7000 if n == 0 else n for n in range(250)},
        metrics={"history": [float(n) for n in range(1100)]},
    )
    run = run_of(home, run_id)
    assert len(run.data.params) == 250
    assert len(run.data.params["p0"]) == 6000
    assert len(connect(home).get_metric_history(run_id, "history")) == 1100


def test_no_secret_is_recorded(home: Settings) -> None:
    class Deep(BaseModel):
        lm: LMSettings

    run_id = tracking.record_run(
        home,
        "router",
        "secrets",
        params={
            "lm": LMSettings(api_key=SecretStr("hunter2")),
            "deep": Deep(lm=LMSettings(api_key=SecretStr("hunter2"))),
            "api_key": "hunter2",
            "several": [{"password": "hunter2"}, SecretStr("hunter2")],
        },
        metrics={"prompt_tokens": 7},
        tags={"token": "hunter2", "bare": SecretStr("hunter2")},
    )
    run = run_of(home, run_id)
    assert run.data.params["lm.api_key"] == run.data.params["api_key"] == tracking.MASK
    assert run.data.params["lm.max_tokens"] == "256"
    for file in [home.path("mlflow.db"), *home.path().rglob("*-wal")]:
        assert b"hunter2" not in file.read_bytes()


@pytest.mark.parametrize("table", ["params", "metrics"])
def test_a_broken_recording_is_marked_failed(home: Settings, table: str, capfd: pytest.CaptureFixture[str]) -> None:
    tracking.record_run(Settings(home=home.home, registry=RegistrySettings(experiment="other")), "router", "ok", {}, {})
    with closing(sqlite3.connect(home.path("mlflow.db"))) as database:
        database.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        database.commit()
    with pytest.raises(
        RegistryError, match="'optimize router' of router could not be recorded: .*disk is full"
    ) as caught:
        tracking.record_run(home, "router", "optimize router", {"a": 1}, {"b": 1.0})
    assert "\n" not in str(caught.value)
    assert only_run(home).info.status == "FAILED"
    assert "Traceback" not in capfd.readouterr().err


def test_artifacts_that_cannot_be_written_fail_the_run(home: Settings) -> None:
    home.path("artifacts").write_text("a file where the folder should be")
    with pytest.raises(RegistryError, match="could not be recorded"):
        tracking.record_run(home, "router", "optimize router", {}, {}, {"a.txt": "a"})
    assert only_run(home).info.status == "FAILED"


def test_ctrl_c_leaves_a_failed_run(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking, "write_artifacts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracking.record_run(home, "router", "optimize router", {"a": 1}, {})
    assert only_run(home).info.status == "FAILED"


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up.txt", "a\\b"])
def test_an_artifact_stays_inside_the_run(home: Settings, path: str) -> None:
    with pytest.raises(RegistryError, match="An artifact cannot be called"):
        tracking.record_run(home, "router", "optimize router", {}, {}, {path: b""})
    assert not home.path("artifacts").exists()


@pytest.mark.parametrize("value", ["high", [1.0, "x"], object()])
def test_a_metric_is_a_number(home: Settings, value: Any) -> None:
    with pytest.raises(RegistryError, match="which is not a number"):
        tracking.record_run(home, "router", "optimize router", {}, {"score": value})


def test_threads_record_at_once(home: Settings) -> None:
    def record(number: int) -> str:
        return tracking.record_run(
            home, "router", f"run {number}", {"n": number}, {"m": number}, {"n.txt": str(number)}
        )

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(record, range(8)))
    for number, run_id in enumerate(runs):
        assert run_of(home, run_id).data.params == {"n": str(number)}
        assert file_of(home, run_id, "n.txt").read_text() == str(number)


def test_a_deleted_experiment_says_how_to_restore_it(home: Settings) -> None:
    run_id = tracking.open_run(home, "router", "optimize router")
    connect(home).delete_experiment(run_of(home, run_id).info.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore -x 1"):
        tracking.open_run(home, "router", "optimize router")


def test_a_database_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and longer than its header")
    began = time.monotonic()
    with pytest.raises(RegistryError, match="is not an SQLite database"):
        tracking.open_run(Settings(home=tmp_path), "router", "optimize router")
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="Set DSPY_TOOLKIT_HOME"):
        tracking.open_run(Settings(home=tmp_path / "file"), "router", "optimize router")
    assert time.monotonic() - began < 5


def test_an_unknown_address_is_refused_and_its_password_hidden(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, registry=RegistrySettings(tracking_uri="nosuch://me:hunter2@host/db"))
    with pytest.raises(RegistryError, match="Cannot open the MLflow store nosuch://me:") as caught:
        connect(settings)
    assert "hunter2" not in str(caught.value)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert not exists(Settings(home=tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_a_first_run_prints_nothing_and_keeps_to_its_home(tmp_path: Path) -> None:
    """A new process, warnings as errors, a database to be made: nothing on the terminal, nothing beside `home`."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO); before = logging.getLogger().handlers[:]\n"
        "import dspy_toolkit.tracking.runs as tracking, sys; assert 'mlflow' not in sys.modules\n"
        "from dspy_toolkit.settings import Settings\n"
        "tracking.record_run(Settings(home='a home'), 'router', 'first', {'a': 1}, {'b': 1}, {'c.txt': 'd'})\n"
        "import os; assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'\n"
        "assert logging.getLogger().handlers == before and logging.getLogger().level == logging.INFO\n"
    )
    root = str(Path(tracking.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a home"]
    assert sorted(path.name for path in (tmp_path / "a home").iterdir()) == [
        ".gitignore",
        "artifacts",
        "mlflow.db",
        "mlflow.db.lock",
        "processes",
    ]


def test_importing_configures_no_logging() -> None:
    assert not logging.getLogger("dspy_toolkit.tracking.runs").handlers


def test_a_locked_database_may_be_tried_again() -> None:
    with (
        pytest.raises(RegistryError, match="Cannot write: database is locked") as caught,
        mlflow_errors("Cannot write"),
    ):
        raise OSError("database is locked")
    assert caught.value.retryable
