"""A race in Prefect."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import OptimizerError
from dspy_toolkit.optimizers import Choice, Compiled
from dspy_toolkit.registry import champion

pytestmark = pytest.mark.usefixtures("prefect_server")


def compare(playground: Any, **arguments: Any) -> Compiled:
    from flows.compare_optimizers import compare_optimizers

    return compare_optimizers(playground.location, **({"budget": "400"} | arguments))


def sealed_was_opened(playground: Any) -> bool:
    from dspy_toolkit.pipeline.compare import LEDGER

    return Path(playground.settings.path(LEDGER)).exists()


def test_a_race_finds_the_best_and_stops_before_the_sealed_test(
    playground: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(playground)
    assert found.changed
    assert found.val_mean > found.val_baseline
    assert found.usage.lm_calls <= 400
    assert not sealed_was_opened(playground)
    assert champion(playground.settings, "questions").version is None, "it makes no version"
    out = capsys.readouterr().out
    assert "race · 400 · 400 LM calls" in out
    assert "The pool" in out and "won: " in out

    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id

    client = connect(playground.settings)
    runs = client.search_runs([experiment_id(client, playground.settings)], "tags.outcome = 'compared'")
    assert [run.data.params["optimizer"] for run in runs] == ["race"]
    assert {"pool.json", "choice.json", "profile.json", "program"} <= {
        entry.path for entry in client.list_artifacts(runs[0].info.run_id)
    }

    again = compare(playground)
    assert again.trials[1].label.startswith("from search 1"), "the next night starts from the best of this one"
    tried = {trial.prompt for trial in found.trials}
    assert not {trial.prompt for trial in again.trials if trial.generator not in ("baseline", "start")} & tried


@pytest.mark.soak
def test_a_race_before_the_gate_promotes_its_winner(playground: Any) -> None:
    from flows.optimize_program import optimize_program

    decision = optimize_program(playground.location, optimizer="race", budget="400")
    assert decision.outcome == "promoted"
    assert champion(playground.settings, "questions").version == 2
    assert sealed_was_opened(playground)


def test_a_dry_run_says_what_it_would_cost_and_spends_nothing(
    playground: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.optimize_program import optimize_program

    choice = optimize_program(playground.location, budget="light", dry_run=True)
    assert isinstance(choice, Choice)
    assert set(choice.forecasts) >= {"labelled", "random"}
    out = capsys.readouterr().out
    assert "minutes" in out
    assert "candidates" in out and "300 LM calls" in out
    assert len(playground.engine.requests) < 40, "the probe alone"
    assert not sealed_was_opened(playground)


def forget(name: str) -> None:
    """Delete a deployment that another test of this server may have made: its runs would wait for a worker."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(name).id)


def test_without_a_deployment_the_workers_cannot_be_asked(playground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__QUESTIONS__LOCATION", playground.location)
    forget("score-candidate/worker")
    with pytest.raises(OptimizerError, match="no deployment score-candidate/worker .*prefect deploy --all"):
        compare(playground, workers=True)
