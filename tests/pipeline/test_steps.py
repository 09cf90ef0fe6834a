"""The steps of an optimization one after the other, with a fake model, up to what stands in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.errors import DatasetError, ObjectMissing, OptimizerError, ProjectError, RegistryError
from dspy_toolkit.optimizers.plan.probe import PROBE_ROWS
from dspy_toolkit.pipeline import release
from dspy_toolkit.pipeline.compare import LEDGER, Match
from dspy_toolkit.pipeline.tuned_on import rows_tuned_on
from dspy_toolkit.registry import champion
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import session
from tests.optimizers.benches import Bench
from tests.optimizers.toys import TOML, by_instruction, engine_of, question


@pytest.fixture
def bench(home: Settings, tmp_path: Path) -> Bench:
    return Bench(home, tmp_path / "project")


def artifacts(settings: Settings, run_id: str) -> dict[str, bytes]:
    """Path → bytes of a run's files."""
    from mlflow.artifacts import download_artifacts

    with session(settings, "test"):
        folder = Path(download_artifacts(run_id=run_id, tracking_uri=settings.tracking_uri))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recorded(settings: Settings, run_id: str) -> Any:
    with session(settings, "test") as mlflow:
        return mlflow.get_run(run_id)


def test_a_better_program_is_promoted_and_wholly_recorded(bench: Bench) -> None:
    run, run_id = bench.whole()
    decision = run.decision
    settings = bench.toy.settings
    assert (decision.outcome, decision.version, decision.previous) == ("promoted", 1, None)
    assert champion(settings, "colours").version == 1

    loaded = load_program(settings, "colours@champion")
    with bench.connection.context():
        assert loaded.program(text="a whale 5").label == "blue"
    manifest = loaded.manifest
    assert manifest is not None
    assert manifest.location == bench.location
    assert manifest.optimizer == "gepa"
    assert set(manifest.split_sha256) == {"train", "val", "sealed"}
    frames = {part: bench.toy.store.read_frame(getattr(run.dataset, part)) for part in ("train", "val", "sealed")}
    assert set(manifest.trained_rows) == {*frames["train"]["_row"], *frames["val"]["_row"]}
    assert not set(manifest.trained_rows) & set(frames["sealed"]["_row"])
    assert set(manifest.reports) == {"compiled", "candidate_val", "champion_val", "comparison"}
    assert "dspy" in manifest.packages

    files, saved = artifacts(settings, run_id), recorded(settings, run_id)
    assert set(files) >= {
        "profile.json",
        "choice.json",
        "decision.json",
        "dataset.json",
        "program/program.json",
        "program/manifest.json",
        "comparison.png",
        "report.html",
        "rows_val.json",
        "rows_sealed.json",
    }
    assert files["comparison.png"].startswith(b"\x89PNG")
    assert json.loads(files["decision.json"])["outcome"] == "promoted"
    sealed = json.loads(files["rows_sealed.json"])
    assert len(sealed["data"]) == len(frames["sealed"])
    assert sealed["columns"] == ["_row", "_group", "value", "status"], "no inputs and no answers"
    assert "inputs" in json.loads(files["rows_val.json"])["columns"]
    assert saved.info.status == "FINISHED"
    assert saved.data.params["optimizer"] == "gepa"
    assert saved.data.params["data"] == run.ref.data.fingerprint
    assert saved.data.metrics["sealed_candidate"] == 1.0
    assert saved.data.metrics["sealed_delta_low"] > 0
    assert saved.data.tags["outcome"] == "promoted"


def test_nothing_changed_is_recorded_as_wholly(bench: Bench) -> None:
    bench.toy.knows = lambda request: False
    run, run_id = bench.whole(optimizer="bootstrap")
    decision = run.decision
    settings = bench.toy.settings
    assert (decision.outcome, decision.version) == ("unchanged", None)
    assert champion(settings, "colours").version is None
    files, saved = artifacts(settings, run_id), recorded(settings, run_id)
    assert set(files) == {
        "profile.json",
        "choice.json",
        "decision.json",
        "dataset.json",
        "report.html",
        "program/program.json",
        "program/manifest.json",
    }
    manifest = json.loads(files["program/manifest.json"])
    assert manifest["program_sha256"] == run.compiled.program.sha256
    assert saved.info.status == "FINISHED"
    assert "sealed_delta" not in saved.data.metrics
    assert not bench.toy.settings.path(LEDGER).exists()


def test_a_second_night_compares_with_the_champion(bench: Bench) -> None:
    bench.whole()
    run, _ = bench.whole()
    decision = run.decision
    assert (decision.outcome, decision.version, decision.previous) == ("unchanged", None, 1)
    assert run.ref.champion.version == 1
    assert run.ref.night.number == 1
    assert run.compiled.trials[1].label == "from colours@1", "it starts from what is live"


def test_a_night_that_was_not_recorded_is_gone_on_with(bench: Bench) -> None:
    run = bench.find()
    again = bench.find()
    assert again.ref.night == run.ref.night
    assert again.compiled.usage.physical_calls == 0


def test_a_new_night_draws_anew_and_tries_nothing_twice(bench: Bench) -> None:
    bench.toy.knows = lambda request: False
    first, _ = bench.whole(optimizer="labelled", budget="100")
    second, _ = bench.whole(optimizer="labelled", budget="100")
    tried = {trial.prompt for trial in first.compiled.trials}
    assert not {trial.prompt for trial in second.compiled.trials if trial.generator == "labelled"} & tried
    assert (first.ref.night.number, second.ref.night.number) == (0, 1)


def test_validation_rows_that_no_search_has_read_join_the_sealed_test(bench: Bench) -> None:
    run = bench.find(optimizer="labelled", budget="100")
    store, (tuned, sealed) = bench.toy.store, (set(rows_tuned_on(bench.context(), run)), run.dataset.sealed)
    val = set(store.read_frame(run.dataset.val)["_row"])
    kept = Match(
        bench.context(), bench.toy.problem().program, bench.toy.problem().program, run.dataset, val_rows=8,
    ).sealed_rows()  # fmt: skip
    joined = set(kept["_row"]) - set(store.read_frame(sealed)["_row"])
    assert joined <= val
    assert len(joined) == max(len(val) - PROBE_ROWS, 0)
    assert len(tuned & val) == min(len(val), max(PROBE_ROWS, run.choice.val_rows))


def test_rows_that_the_champion_was_tuned_on_are_not_its_test(bench: Bench) -> None:
    """A row that went to the sealed split of another dataset file stays what it was for the champion."""
    better = "Name the colour of the thing, as label red, green or blue."
    # Better on validation than the champion, so that the sealed rows are asked for.
    bench.toy.knows = lambda request: (
        by_instruction(request) and (better in request.messages[0].content or sum(map(ord, question(request))) % 4 > 0)
    )
    first, _ = bench.whole()
    bench.toy.instruction = better
    swapped = Dataset(
        train=first.dataset.sealed, val=first.dataset.val, sealed=first.dataset.train, report=first.dataset.report
    )
    ref = bench.resolve()
    other = bench.toy.store.read_json(first.compiled.program)
    other["signature"]["instructions"] = bench.toy.instruction
    changed = first.compiled.model_copy(update={"program": bench.toy.store.save_json(other)})
    with pytest.raises(DatasetError, match="No sealed row is left that neither program was tuned on"):
        bench.compare(ref, swapped, first.choice, changed)


def test_compiling_needs_no_sealed_object(bench: Bench) -> None:
    ref, data, search = bench.begin()
    bench.toy.store.delete(data.sealed)
    profile = bench.probe(search)
    choice = bench.select(search, profile, None, None)
    compiled = bench.compile(search, choice, profile)
    assert compiled.changed
    with pytest.raises(ObjectMissing, match="Run the same command again"):
        bench.compare(ref, data, choice, compiled)
    assert not bench.toy.settings.path(LEDGER).exists()


def test_a_failed_promotion_leaves_the_old_champion(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.whole()
    settings = bench.toy.settings

    def fails(*args: Any, **options: Any) -> int:
        raise RegistryError("The registry cannot be written.")

    run = bench.find()
    better = run.comparison.model_copy(update={"outcome": "promoted"})
    again = run.model_copy(update={"comparison": better, "name": "the failed run"})
    monkeypatch.setattr(release, "promote", fails)
    with pytest.raises(RegistryError, match="cannot be written"):
        bench.release(again)
    assert champion(settings, "colours").version == 1
    with session(settings, "test") as mlflow:
        [experiment] = mlflow.search_experiments(filter_string=f"name = '{settings.registry.experiment}'")
        runs = {found.info.run_name: found for found in mlflow.search_runs([experiment.experiment_id])}
    assert runs["the failed run"].info.status == "FAILED"


def test_a_project_that_changed_meanwhile_is_not_compiled_under_its_old_name(bench: Bench) -> None:
    _, _, search = bench.begin()
    profile = bench.probe(search)
    choice = bench.select(search, profile, "bootstrap", None)
    path = Path(bench.location)
    path.write_text(TOML.replace("Classify.", "Classify it."))
    with pytest.raises(ProjectError, match=r"The program of colours changed since this run began\. Run it again"):
        bench.compile(search, choice, profile)


def test_what_is_not_said_comes_from_the_project_and_then_the_settings(bench: Bench) -> None:
    _, _, search = bench.begin()
    profile = bench.probe(search)
    path = Path(bench.location)
    assert bench.select(search, profile, None, None).budget == "light"
    settings = bench.toy.settings.optimize.model_copy(update={"budget": "heavy", "optimizer": "mipro"})
    chosen = bench.select(search, profile, None, None, optimize=settings)
    assert (chosen.optimizer, chosen.budget) == ("mipro", "heavy")
    path.write_text(TOML.replace("[dataset]", 'optimizer = "bootstrap"\nbudget = "medium"\n[dataset]'))
    chosen = bench.select(search, profile, None, None, optimize=settings)
    assert (chosen.optimizer, chosen.budget) == ("bootstrap", "medium")
    assert bench.select(search, profile, "gepa", "light", optimize=settings).optimizer == "gepa"


def test_bad_words_are_one_clear_line(bench: Bench) -> None:
    _, _, search = bench.begin()
    profile = bench.probe(search)
    with pytest.raises(OptimizerError, match="There is no optimizer 'mipor'. Did you mean mipro"):
        bench.select(search, profile, "mipor", None)
    with pytest.raises(OptimizerError, match="There is no budget 'hevy'. Did you mean heavy"):
        bench.select(search, profile, None, "hevy")


def test_the_steps_after_the_first_ask_for_nothing_twice(bench: Bench) -> None:
    bench.find()
    asked = len(engine_of(bench.connection).requests)
    bench.find()
    assert len(engine_of(bench.connection).requests) == asked
