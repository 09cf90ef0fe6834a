"""Drill 21: somebody changes the data, the metric, the program or a file that is read, between two steps of a run.

What a step would compute would no longer be what it is kept under: it is refused, and nothing is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.optimizers.pool.scoring import ScoreJob
from dspy_toolkit.pipeline.compare import LEDGER
from dspy_toolkit.pipeline.compile import score_candidate
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.registry import champion
from dspy_toolkit.run import Run, ScoreInput
from dspy_toolkit.settings import Settings
from tests.drills.conftest import Saw
from tests.optimizers.benches import Bench
from tests.optimizers.toys import by_demos, engine_of

METRIC = "from rule import same\n\ndef own(example, prediction):\n    return same(example.label, prediction.label)\n"


class Meanwhile(NamedTuple):
    """Something that changes, and what the refusal calls it."""

    file: str
    old: str
    new: str
    called: str


CHANGES = {
    "program": Meanwhile("colours.toml", "Classify.", "Classify it.", "program"),
    "metric": Meanwhile("own_metric.py", "return same", "return not same", "metric"),
    "a file that the metric imports": Meanwhile("rule.py", "a == b", "a != b", "metric"),
    "a file that the metric reads": Meanwhile("words.txt", "red", "scarlet", "declared files"),
}


class Drill(NamedTuple):
    """A run as far as its verdict, whose every step can be taken once more."""

    bench: Bench
    run: Run
    steps: dict[str, Callable[[], Any]]
    """Those that ask the program or the metric, or make a version of them."""


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Drill:
    """One run for all: what is refused leaves it as it was."""
    folder = tmp_path_factory.mktemp("drill")
    home = Settings(home=folder / "home")
    home.path().mkdir()
    shutil.copy(empty_mlflow, home.path("mlflow.db"))
    bench = Bench(home, folder / "project")
    bench.toy.knows = by_demos
    path = Path(bench.location)
    path.write_text(
        path.read_text().replace("[dataset]", 'metric = "own_metric:own"\nfiles = ["words.txt"]\n[dataset]')
    )
    for name, text in {"own_metric.py": METRIC, "rule.py": "def same(a, b):\n    return a == b\n"}.items():
        path.with_name(name).write_text(text)
    path.with_name("words.txt").write_text("red\n")
    ref, data, search = bench.begin()
    profile = bench.probe(search)
    choice = bench.select(search, profile, "labelled", "60")
    compiled = bench.compile(search, choice, profile)
    found = {"ref": ref, "dataset": data, "profile": profile, "choice": choice, "compiled": compiled}
    run = Run(name="a run", **found, comparison=bench.compare(ref, data, choice, compiled))
    assert run.comparison.outcome == "promoted"
    job = ScoreInput(**dict(search), job=ScoreJob(program=compiled.program, label="found", first=0, last=4))
    steps = {
        "probe": lambda: bench.probe(search),
        "compile": lambda: bench.compile(search, choice, profile),
        "score_candidate": lambda: score_candidate(bench.context(), job),
        "compare": lambda: bench.compare(ref, data, choice, compiled),
        "release_baseline": lambda: release_baseline(bench.context(), ref),
        "release": lambda: bench.release(run),
    }
    return Drill(bench, run, steps)


@pytest.mark.drill(21, "the program, the metric or a file of theirs changes between two steps")
@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_refused_by_every_step_that_comes(drill: Drill, what: str, saw: Saw) -> None:
    change, home = CHANGES[what], drill.bench.toy.settings
    file = Path(drill.bench.location).with_name(change.file)
    before = file.read_text()
    kept, asked = set(home.path().rglob("*")), len(engine_of(drill.bench.connection).requests)
    ledger = home.path(LEDGER).read_bytes()
    file.write_text(before.replace(change.old, change.new))
    for take in drill.steps.values():
        with pytest.raises(
            ProjectError, match=f"The .*{change.called}.* of colours changed since this run began. Run it again"
        ):
            take()
    assert set(home.path().rglob("*")) == kept
    assert len(engine_of(drill.bench.connection).requests) == asked
    assert home.path(LEDGER).read_bytes() == ledger
    assert champion(home, "colours").version is None
    file.write_text(before)  # what changed back is what it was
    assert drill.bench.resolve().program == drill.run.ref.program
    saw("one line says what changed; nothing was asked, opened or kept", None)


def test_data_that_changed_before_it_was_read_is_refused_and_later_it_is_of_no_account(drill: Drill) -> None:
    """The splits are kept by their contents: a run that has them ends as it began, and the next one reads the new rows."""
    ref, rows = drill.run.ref, Path(drill.bench.location).with_name("colours.csv")
    before = rows.read_text()
    kept = set(drill.bench.toy.settings.path().rglob("*"))
    rows.write_text(before.replace("green", "blue", 1))
    with pytest.raises(ProjectError, match=r"^The data of colours changed since this run began. Run it again.$"):
        prepare(drill.bench.context(), ref.data)
    assert set(drill.bench.toy.settings.path().rglob("*")) == kept
    assert drill.steps["compile"]().program == drill.run.compiled.program
    assert drill.bench.resolve().data != ref.data
    rows.write_text(before)
    assert prepare(drill.bench.context(), ref.data) == drill.run.dataset
