"""A run that a worker started: its project comes over the network, and only what this machine knows is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.optimizers import Choice
from dspy_toolkit.optimizers.pool.scoring import ScoreJob
from dspy_toolkit.project import ProgramPart
from dspy_toolkit.run import Request, ScoreInput
from dspy_toolkit.store import Ref


@pytest.fixture
def on_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a worker, and `flow.serve`, start a run's process with.
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `trap.py` writes when it is imported."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap.py").write_text(f"open({str(sprung)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    return sprung


@pytest.mark.usefixtures("on_a_worker")
@pytest.mark.parametrize("place", ["trap.py", "./trap.py:project", "trap:project", "./trap.toml", "trap"])
def test_a_place_from_the_network_is_not_run(place: str, trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.policy import open_project

    for request in (Request(location=place), Request(location="router", start=place)):
        with pytest.raises(ProjectError, match=r"no project that this machine knows .*\[projects.NAME\]"):
            open_project(request)
    assert open_project(Request(location="router", start="questions@champion")).project.name == "router"
    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__ROUTER__LOCATION", "trap.py")
    with pytest.raises(ProjectError):
        open_project(Request(location="./trap.py"))
    assert not trap.exists()


@pytest.mark.usefixtures("on_a_worker", "prefect_server")
def test_a_flow_refuses_it(playground: Any, trap: Path) -> None:
    from flows.optimize_program import optimize_program

    with pytest.raises(ProjectError, match="no project that this machine knows"):
        optimize_program("router", start="trap.py")
    assert not trap.exists()


@pytest.mark.usefixtures("on_a_worker", "prefect_server")
def test_a_candidate_is_not_scored_from_anywhere(playground: Any, trap: Path) -> None:
    from flows.score_candidate import score_candidate

    program = ProgramPart(project="trap", location="trap.py", model="m", reflection_model="m", fingerprint="")
    nothing = Ref(sha256="0" * 64, kind="parquet")
    job = ScoreJob(program=nothing, label="baseline", first=0, last=1)
    with pytest.raises(ProjectError, match="no project that this machine knows"):
        score_candidate(ScoreInput(program=program, train=nothing, val=nothing, job=job))
    assert not trap.exists()


@pytest.mark.usefixtures("on_a_worker", "prefect_server")
def test_a_name_that_the_settings_locate_is_run(playground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.optimize_program import optimize_program

    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__QUESTIONS__LOCATION", playground.location)
    assert isinstance(optimize_program("questions", budget="light", dry_run=True), Choice)
    # The place itself, spelled as in the settings, is as good.
    assert isinstance(optimize_program(playground.location, budget="light", dry_run=True), Choice)


@pytest.mark.usefixtures("prefect_server")
def test_workers_are_not_asked_for_what_they_would_refuse(playground: Any) -> None:
    from flows.compare_optimizers import compare_optimizers

    with pytest.raises(ProjectError, match=r"\[projects.NAME\]"):
        compare_optimizers(playground.location, budget="400", workers=True)
