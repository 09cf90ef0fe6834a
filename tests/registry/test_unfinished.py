"""What a killed process left: a promotion is finished, everything else undone, and the runs of the living are left alone."""

from __future__ import annotations

import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry import champion, promote, undo
from dspy_toolkit.registry.unfinished import INTENT_TAG, Unfinished, finish_or_undo
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import session
from dspy_toolkit.tracking.runs import open_run, record_run
from tests.tracking.dying import die


def status(home: Settings, run_id: str) -> str:
    with session(home, "test") as mlflow:
        return mlflow.get_run(run_id).info.status


class Finished(list[Unfinished]):
    """What was to be finished."""


def look_after(home: Settings, project: str = "router") -> Finished:
    found = Finished()
    finish_or_undo(home, project, found.append)
    return found


def test_a_run_without_a_promotion_is_closed_as_failed(home: Settings, save, caplog: pytest.LogCaptureFixture) -> None:
    promote(home, "router", save("one"))
    bare, saved = open_run(home, "router", "bare"), open_run(home, "router", "saved")
    save("two", run_id=saved)
    recorded = record_run(home, "router", "recorded", {}, {})
    assert look_after(home) == []
    assert [status(home, run) for run in (bare, saved, recorded)] == ["RUNNING", "RUNNING", "FINISHED"]

    die(home)
    caplog.clear()
    (live,) = look_after(home)
    assert live.version.version == 1  # whose run the fixture never closes
    assert [status(home, run) for run in (bare, saved, recorded)] == ["FAILED", "FAILED", "FINISHED"]
    assert champion(home, "router").version == 1
    assert sum("closed as failed" in record.getMessage() for record in caplog.records) == 2
    assert look_after(home) == [] and not list(home.path("processes").iterdir())


def test_a_promotion_is_finished_with_what_its_run_left(home: Settings, save) -> None:
    run_id = open_run(home, "router", "tonight", {INTENT_TAG: "ab" * 32})
    promote(home, "router", save("one", run_id=run_id))
    die(home)
    (left,) = look_after(home)
    assert (left.run_id, left.name, left.version.version) == (run_id, "tonight", 1)
    assert left.intent is not None and left.intent.sha256 == "ab" * 32
    assert champion(home, "router").version == 1


def test_a_promotion_that_was_replaced_since_is_finished_too(home: Settings, save) -> None:
    run_id = open_run(home, "router", "tonight")
    promote(home, "router", save("one", run_id=run_id))
    die(home)
    promote(home, "router", save("two"))
    assert [left.run_id for left in look_after(home)] == [run_id]


def test_a_promotion_that_failed_to_be_undone_is_finished(home: Settings, save) -> None:
    """Killed between the run's failure and the rollback: the version is live, and a run has to say why."""
    run_id = open_run(home, "router", "tonight")
    promote(home, "router", save("one", run_id=run_id))
    with session(home, "test") as mlflow:
        mlflow.set_terminated(run_id, "FAILED")
    die(home)
    assert [left.run_id for left in look_after(home)] == [run_id]


def test_a_promotion_of_another_project_waits_for_its_own_run(home: Settings, save) -> None:
    theirs, ours = open_run(home, "lora", "theirs"), open_run(home, "router", "ours")
    promote(home, "lora", save("one", project="lora", run_id=theirs))
    die(home)
    assert look_after(home, "router") == []
    assert (status(home, ours), status(home, theirs)) == ("FAILED", "RUNNING")
    assert [left.run_id for left in look_after(home, "lora")] == [theirs]


def test_where_finishing_fails_the_next_one_tries_again(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    die(home)

    def refuse(left: Unfinished) -> None:
        raise RegistryError("the database is locked")

    with pytest.raises(RegistryError, match="locked"):
        finish_or_undo(home, "router", refuse)
    assert len(look_after(home)) == 1


def test_before_the_first_run_nothing_is_made(home: Settings, tmp_path) -> None:
    assert look_after(Settings(home=tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


def test_undoing_takes_back_that_promotion_and_no_other(home: Settings, save) -> None:
    first, second, third = save("one"), save("two"), save("three")
    promote(home, "router", first)
    assert undo(home, "router", first)
    assert champion(home, "router").version is None
    for version in (first, second, third):
        promote(home, "router", version)
    assert not undo(home, "router", second)  # another one is live by now
    assert champion(home, "router").version == third
    assert undo(home, "router", third)
    assert champion(home, "router").version == second
