"""The whole flow, in Prefect, on a fake model that answers better with demonstrations."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dspy_toolkit.errors import EngineBusy, EngineFailed, MetricError, ProjectError, RegistryError, StoreError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.registry import champion, load_version
from dspy_toolkit.run import Request
from dspy_toolkit.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server")


def optimize(playground: Any, **arguments: Any) -> Any:
    from flows.optimize_program import optimize_program

    return optimize_program(playground.location, optimizer="bootstrap", budget="120", **arguments)


def runs(playground: Any) -> list[Any]:
    """The MLflow runs of the home, oldest first."""
    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id

    client = connect(playground.settings)
    found = client.search_runs([experiment_id(client, playground.settings)])
    return sorted(found, key=lambda run: run.info.start_time)


def files(playground: Any, run: Any, folder: str = "") -> set[str]:
    from dspy_toolkit.tracking.mlflow_client import connect

    listed = connect(playground.settings).list_artifacts(run.info.run_id, folder or None)
    return {entry.path for entry in listed}


def artifact(key: str) -> Any:
    """The latest of Prefect's artifacts with this key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

    named = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_latest_artifacts(artifact_filter=named)
    return found


def test_a_better_program_is_promoted_and_recorded_and_a_second_run_comes_from_the_cache(
    playground: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = optimize(playground)
    assert decision.outcome == "promoted", decision.reason
    assert (decision.version, decision.previous) == (2, 1), "version 1 is the baseline"
    settings = playground.settings
    assert champion(settings, "questions").version == 2
    state, manifest = load_version(settings, "questions@champion")
    assert state["demos"]
    assert manifest.optimizer == "bootstrap"
    first, run = runs(playground)
    assert first.data.params["optimizer"] == "none"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["sealed_delta_low"] > 0
    assert {"comparison.png", "choice.json", "profile.json", "program", "rows_sealed.json"} <= files(playground, run)
    (page,) = settings.path("reports", "questions").iterdir()
    assert page.name == f"{run.info.run_id}.html"
    assert "report.html" in files(playground, run)
    assert str(page) in artifact("questions-decision").data
    assert page.as_uri() in artifact("questions-report").data
    assert f"open {page}" in capsys.readouterr().out
    assert {"program/program.json", "program/manifest.json"} == files(playground, run, "program")

    again = optimize(playground)
    assert again.outcome in ("unchanged", "refused"), "nothing is left to gain"
    assert champion(playground.settings, "questions").version == 2
    second = runs(playground)[-1]
    assert second.info.run_id != run.info.run_id
    assert (run.data.params["night"], second.data.params["night"]) == ("0", "1")
    assert {"program/program.json", "program/manifest.json"} == files(playground, second, "program")


@pytest.mark.soak
def test_one_changed_byte_of_the_data_is_a_miss(playground: Any) -> None:
    optimize(playground)
    asked = len(playground.engine.requests)
    text = playground.rows.read_text()
    playground.rows.write_text(text.replace("Who met Ada before", "Who met Ada after", 1))
    optimize(playground)
    assert len(playground.engine.requests) > asked


@pytest.mark.parametrize(("variable", "value"), [("LM__MAX_TOKENS", "99"), ("OPTIMIZE__SEED", "7")])
def test_a_setting_that_matters_is_a_miss(
    playground: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    request = Request(location=playground.location)
    before = resolve(Context.open(playground.location, playground.settings), request)
    monkeypatch.setenv(f"DSPY_TOOLKIT_{variable}", value)
    after = resolve(Context.open(playground.location, playground.settings), request)
    assert after.program.fingerprint != before.program.fingerprint
    assert after.data == before.data


def test_an_object_that_was_deleted_and_a_result_that_was_cut_short_are_made_again(playground: Any) -> None:
    from prefect import flow
    from prefect.settings import get_current_settings

    from tasks.steps import prepare_dataset, resolve_project

    @flow
    def prepare() -> Any:
        return prepare_dataset(resolve_project(Request(location=playground.location)).data)

    results = get_current_settings().results.local_storage_path
    earlier = set(results.glob("prepare-*"))  # other tests of this process keep theirs there
    dataset = prepare()
    store = Store(playground.settings.objects)
    store.delete(dataset.sealed)
    assert prepare() == dataset
    assert store.exists(dataset.sealed)

    kept = [
        result for result in set(results.glob("prepare-*")) - earlier if dataset.sealed.sha256 in result.read_text()
    ]
    for left in (60, 0):
        for result in kept:
            os.truncate(result, left)
        assert prepare() == dataset
        assert all(dataset.sealed.sha256 in result.read_text() for result in kept)
    assert kept


def test_a_transient_error_is_tried_again_and_another_is_not(playground: Any) -> None:
    from tasks.steps import probe_program

    failures: list[Exception] = [EngineBusy("The engine's queue is full: 1024 requests wait.")]
    usual = playground.engine._function

    def flaky(request: Any) -> Any:
        return failures.pop() if failures else usual(request)

    playground.engine._function = flaky
    delays = probe_program.task.retry_delay_seconds
    probe_program.task.retry_delay_seconds = [0, 0, 0]
    try:
        assert optimize(playground).outcome == "promoted"
    finally:
        probe_program.task.retry_delay_seconds = delays


def test_a_metric_that_fails_ends_the_flow_with_its_error_and_leaves_the_program_as_it_was(playground: Any) -> None:
    from pathlib import Path

    project = Path(playground.location)
    (project.parent / "mymetric.py").write_text("def broken(example, prediction):\n    return 2.0\n")
    project.write_text(project.read_text().replace("[dataset]", 'metric = "mymetric:broken"\n[dataset]'))
    with pytest.raises(MetricError, match=r"2\.0"):
        optimize(playground)
    assert champion(playground.settings, "questions").version is None


def test_a_project_that_is_not_there_names_the_nearest(playground: Any) -> None:
    playground.location = "rooter"
    with pytest.raises(ProjectError, match="router"):
        optimize(playground)


def test_a_failed_engine_leaves_the_old_champion(playground: Any) -> None:
    assert optimize(playground).version == 2
    from pathlib import Path

    playground.engine._function = lambda request: RuntimeError("the model is gone")
    project = Path(playground.location)
    project.write_text(project.read_text().replace("Classify the question by", "Say, for the question,"))
    from tasks.steps import probe_program

    delays = probe_program.task.retry_delay_seconds
    probe_program.task.retry_delay_seconds = [0, 0, 0]
    try:
        with pytest.raises(EngineFailed):
            optimize(playground)
    finally:
        probe_program.task.retry_delay_seconds = delays
    assert champion(playground.settings, "questions").version == 2


def test_the_queueing_limit_of_this_host_is_made(playground: Any) -> None:
    from prefect.client.orchestration import get_client

    from tasks.policy import accelerator, limit_name

    with accelerator(), get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(limit_name())
    assert limit.limit == 1


def test_a_promotion_whose_record_is_made_at_the_second_attempt_stays(
    playground: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.pipeline import record
    from tasks import steps

    made, attempts = record.record_run, list[str]()

    def once_locked(*args: Any, **options: Any) -> Any:
        attempts.append("recorded")
        if len(attempts) == 1:
            error = RegistryError("The database of runs is locked.")
            error.retryable = True
            raise error
        return made(*args, **options)

    monkeypatch.setattr(record, "record_run", once_locked)
    monkeypatch.setattr(steps.record_run, "retry_delay_seconds", [0, 0, 0])
    decision = optimize(playground)
    assert decision.outcome == "promoted" and len(attempts) == 2
    assert champion(playground.settings, "questions").version == decision.version


def test_a_promotion_that_cannot_be_recorded_is_undone_and_the_next_run_makes_it(
    playground: Any,
) -> None:
    reports = playground.settings.path("reports")
    reports.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="Cannot write .*reports"):
        optimize(playground)
    reports.unlink()
    assert champion(playground.settings, "questions").version == 1
    asked = len(playground.engine.requests)
    assert optimize(playground).outcome == "promoted"
    assert len(playground.engine.requests) == asked, "the verdict came from the cache: the sealed rows stayed closed"
    assert champion(playground.settings, "questions").version == 3


def test_the_artifacts_of_any_projects_name_have_keys_that_prefect_takes() -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    from tasks.show import artifact_key

    assert ArtifactCreate(key=artifact_key("my_project-2", "decision")).key == "my-project-2-decision"


def test_a_run_that_was_not_recorded_is_gone_on_with_from_the_caches(
    playground: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.pipeline import record
    from flows.optimize_program import optimize_program

    def fails(*args: Any, **options: Any) -> str:
        raise RegistryError("The registry cannot be written.")

    with monkeypatch.context() as broken:
        broken.setattr(record, "record_run", fails)
        with pytest.raises(RegistryError):
            optimize_program(playground.location, budget="light")
    asked = len(playground.engine.requests)
    assert optimize_program(playground.location, budget="light").outcome == "promoted"
    assert len(playground.engine.requests) == asked, "every step that needs the model came from the cache"


@pytest.mark.soak
def test_a_run_from_another_projects_program(playground: Any) -> None:
    from pathlib import Path

    from flows.optimize_program import optimize_program

    assert optimize(playground).version == 2
    project = Path(playground.location)
    other = project.with_name("asks.toml")
    other.write_text(project.read_text().replace('"questions"', '"asks"', 1))
    decision = optimize_program(str(other), optimizer="bootstrap", budget="light", start="questions@champion")
    assert decision.outcome == "promoted", decision.reason
    _, manifest = load_version(playground.settings, "asks@champion")
    assert manifest.parent == "questions@2"
    assert [trial["label"] for trial in manifest.reports["compiled"]["trials"][:2]] == ["baseline", "from questions@2"]


def test_the_start_is_called_from_at_the_terminal() -> None:
    from cyclopts import App

    from flows.optimize_program import optimize_program

    app = App(version_flags=[], result_action="return_value")
    app.default(optimize_program.fn)
    _, bound, _ = app.parse_args(["--project", "asks.toml", "--from", "questions@2"])
    assert bound.arguments == {"project": "asks.toml", "start": "questions@2"}
