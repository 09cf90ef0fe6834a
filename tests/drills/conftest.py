"""What the drills share: a small project, the process that forks, and how to say what was seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.drills.forks import Ended, Forks
from tests.drills.table import SEEN
from tests.flows.conftest import write_questions

Saw = Callable[[str, float | None], None]
"""Told what was seen, and the seconds until the work was whole again."""


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Saw:
    def say(what: str, seconds: float | None) -> None:
        request.node.user_properties.append((SEEN, (what, seconds)))

    return say


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML file of a project of 96 rows."""
    return write_questions(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def undisturbed(forks: Forks, project: Path, new_home: Callable[[Path], Path], tmp_path_factory) -> Ended:
    """A whole run that nothing disturbs."""
    ended = forks.run(project, new_home(tmp_path_factory.mktemp("undisturbed")))
    assert ended.code == 0 and ended.said == "", ended.said
    assert ended.end is not None and ended.end["outcome"] == "promoted" and len(ended.end["openings"]) == 1
    return ended


@pytest.fixture(scope="session")
def new_home(empty_mlflow: Path) -> Callable[[Path], Path]:
    """Make a home, in a folder, whose MLflow database is made."""

    def make(folder: Path) -> Path:
        home = folder / "home"
        home.mkdir(mode=0o700, parents=True)
        shutil.copy(empty_mlflow, home / "mlflow.db")
        return home

    return make
