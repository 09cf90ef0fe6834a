"""What a run leaves in MLflow is read back as it was; older and foreign runs are left out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest
from pydantic import BaseModel

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.pipeline import select as select_step
from dspy_toolkit.pipeline.record import search_of, task_kind
from dspy_toolkit.pipeline.select import prior_runs
from dspy_toolkit.project import Project
from dspy_toolkit.run import SelectInput
from dspy_toolkit.settings import RegistrySettings, Settings
from dspy_toolkit.tracking import runs as tracking
from dspy_toolkit.tracking.history import History, PastRun, read_history
from tests.optimizers.benches import Bench
from tests.optimizers.past_runs import SAID, record


class Person(BaseModel):
    """An answer with parts."""

    name: str


@pytest.mark.parametrize(
    ("signature", "outputs", "kind"),
    [
        ('text -> label: Literal["a", "b"]', ("label",), "choice"),
        ("text -> sure: bool", ("sure",), "choice"),
        ("text -> answer", ("answer",), "text"),
        ("text -> answer: float", ("answer",), "number"),
        ("text -> names: list[str]", ("names",), "record"),
        ("text -> person: Person", ("person",), "record"),
        ("text -> name, age: int", ("name", "age"), "record"),
        ("text -> name", (), "open"),
    ],
)
def test_a_task_is_of_the_kind_of_its_answer(signature: str, outputs: tuple[str, ...], kind: str) -> None:
    made = dspy.Signature(signature, custom_types={"Person": Person})
    project = Project(
        name="some",
        summary="Something",
        program=lambda: dspy.Predict(made),
        metric=lambda example, prediction: 1.0,
        dataset=DatasetSpec(source="rows.csv", inputs=("text",), outputs=outputs),
    )
    assert task_kind(project) == kind


@pytest.fixture
def bench(home: Settings, tmp_path: Path) -> Bench:
    return Bench(home, tmp_path / "project")


def test_a_run_is_read_back_with_what_it_found(bench: Bench) -> None:
    run, run_id = bench.whole()
    [found], left_out = read_history(bench.toy.settings)
    comparison = run.comparison.sealed
    assert comparison is not None and left_out == 0
    assert found == PastRun(
        run_id=run_id,
        project="colours",
        when=found.when,
        model=run.ref.program.model,
        reflection_model=run.ref.program.reflection_model,
        task="choice",
        optimizer="gepa",
        winner="gepa",
        budget="light",
        start="",
        baseline=run.profile.baseline,
        graded=False,
        feedback=True,
        predictors=1,
        train=run.profile.train,
        val=run.profile.val,
        val_gain=run.compiled.val_mean - run.compiled.val_baseline,
        sealed_gain=comparison.delta,
        sealed_low=comparison.low,
        sealed_high=comparison.high,
        predicted_lm_calls=run.choice.predicted_lm_calls,
        lm_calls=run.compiled.usage.lm_calls,
        outcome=run.decision.outcome,
        search=found.search,
    )


@pytest.mark.soak
def test_a_search_is_known_by_what_it_depends_on(bench: Bench) -> None:
    run, _ = bench.whole()
    bench.whole(budget="200")
    other, first = read_history(bench.toy.settings).runs
    assert first.outcome == "promoted"
    assert first.search == search_of(run.ref, run.dataset, run.choice) != other.search


@pytest.mark.soak
def test_another_night_is_another_search(bench: Bench) -> None:
    bench.whole()
    bench.whole()
    second, first = read_history(bench.toy.settings).runs
    assert (first.outcome, second.outcome) == ("promoted", "unchanged")
    assert first.search != second.search
    assert second.sealed_gain is None


def test_nothing_to_gain_teaches_nothing(bench: Bench) -> None:
    bench.toy.knows = lambda request: True
    bench.whole(optimizer="auto")
    [found], _ = read_history(bench.toy.settings)
    assert (found.optimizer, found.val_gain, found.lm_calls) == ("none", None, 0)


def test_like_runs_change_the_choice_and_are_named(bench: Bench) -> None:
    for optimizer in ("gepa", "bootstrap", "mipro"):
        bench.whole(optimizer=optimizer)
    _, _, search = bench.begin()
    given = SelectInput(**dict(search), profile=bench.probe(search))
    like = prior_runs(bench.context(), given)
    assert [run.optimizer for run in like] == ["gepa", "bootstrap", "mipro"]
    assert like[0].winner == "gepa"
    assert prior_runs(bench.context(), given.model_copy(update={"optimizer": "gepa"})) == (), (
        "what is asked for by name needs none"
    )
    graded = given.profile.model_copy(update={"graded": True})
    assert prior_runs(bench.context(), given.model_copy(update={"profile": graded})) == ()


def test_a_history_that_cannot_be_read_costs_no_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(settings: Settings) -> History:
        raise RegistryError("The history could not be read: the server is gone.")

    _, _, search = bench.begin()
    given = SelectInput(**dict(search), profile=bench.probe(search))
    monkeypatch.setattr(select_step, "read_history", fails)
    with caplog.at_level(logging.WARNING):
        assert prior_runs(bench.context(), given) == ()
    assert (
        "Chosen without the history of earlier runs. The history could not be read: the server is gone." in caplog.text
    )


@pytest.mark.parametrize("leave_out", ["profile", "search", "task", "start", "predicted_lm_calls", "compile_lm_calls"])
def test_a_run_that_says_too_little_is_left_out_and_counted(home: Settings, leave_out: str) -> None:
    kept = record(home)
    record(home, leave_out=leave_out)
    found, left_out = read_history(home)
    assert [run.run_id for run in found] == [kept]
    assert left_out == 1


@pytest.mark.parametrize("broken", [{"profile": {**SAID["profile"], "baseline": 7}}, {"profile": {"train": "many"}}])
def test_a_run_that_says_nonsense_is_left_out(home: Settings, broken: dict[str, Any]) -> None:
    record(home, **broken)
    assert read_history(home) == History((), 1)


def test_runs_of_another_kind_are_not_there(home: Settings) -> None:
    record(home, outcome=None)
    tracking.open_run(home, "colours", "still running", {"outcome": "refused"})
    assert read_history(home) == History((), 0)


def test_the_newest_come_first_up_to_the_limit(home: Settings) -> None:
    made = [record(home, project=("colours", "shapes")[number % 2], search=f"s{number}") for number in range(5)]
    newest = list(reversed(made))
    assert [run.run_id for run in read_history(home).runs] == newest
    assert [run.run_id for run in read_history(home, limit=2).runs] == newest[:2]
    assert [run.run_id for run in read_history(home, project="shapes").runs] == newest[1::2]
    assert read_history(home, project="' OR 1=1") == History((), 0)


def test_looking_makes_nothing(tmp_path: Path, home: Settings) -> None:
    assert read_history(Settings(home=tmp_path / "none")) == History((), 0)
    assert not (tmp_path / "none").exists()
    other = home.model_copy(update={"registry": RegistrySettings(experiment="another")})
    assert read_history(other) == History((), 0)
