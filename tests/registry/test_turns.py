"""Homes that share one MLflow server promote one after the other, and a turn that a killed process left holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_toolkit import registry
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry import champion, champions, find_version, list_projects, promote, rollback
from dspy_toolkit.registry.turns import SUFFIX, TURN, promotion_turn
from dspy_toolkit.settings import RegistrySettings, Settings
from dspy_toolkit.tracking.mlflow_client import session
from tests.registry.test_promotion import run_sql


@pytest.fixture
def other(home: Settings, tmp_path: Path) -> Settings:
    """Another home on the registry of the first."""
    return Settings(home=tmp_path / "other", registry=RegistrySettings(tracking_uri=home.tracking_uri))


@pytest.mark.parametrize("compared", [True, False])
def test_two_homes_that_promote_at_once_leave_one_champion_and_a_history_that_can_be_walked(
    home: Settings, other: Settings, save, compared: bool
) -> None:
    for project in ("one", "two"):
        for text in ("a", "b", "c"):
            save(f"{project} {text}", project=project)
        promote(home, project, 1)
        both_have_read = threading.Barrier(2)

        def race(settings: Settings, version: int, project: str = project, start: threading.Barrier = both_have_read):
            seen = champion(settings, project) if compared else None
            start.wait()
            try:
                return promote(settings, project, version, compared_with=seen)
            except RegistryError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            said = dict(zip((2, 3), pool.map(race, (home, other), (2, 3)), strict=True))
        live = champion(other, project).version
        loser = 5 - (live or 0)
        line = [each.version for each in champions(home, project)]
        if compared:
            assert said[live] == 1
            assert f"compared with {project}@1, but by now the champion is {project}@{live}" in str(said[loser])
            assert line == [live, 1]
            assert find_version(home, f"{project}@{loser}").previous is None
        else:
            assert (said[loser], said[live]) == (1, loser)
            assert line == [live, loser, 1]
        assert [rollback(other, project) for _ in line[1:]] == line[1:]


def test_who_moves_the_alias_without_a_turn_is_noticed_and_the_tags_are_taken_back(home: Settings, save) -> None:
    for text in ("one", "two", "three"):
        save(text)
    promote(home, "router", 1)
    run_sql(
        home,
        "CREATE TRIGGER other AFTER INSERT ON model_version_tags WHEN NEW.key = 'promoted' AND NEW.version = 2 "
        "BEGIN UPDATE registered_model_aliases SET version = 3; END",
    )
    with pytest.raises(RegistryError, match=r"router@2 was to replace router@1, but .* the champion is router@3"):
        promote(home, "router", 2)
    assert champion(home, "router").version == 3
    stayed = find_version(home, "router@2")
    assert (stayed.previous, stayed.promoted) == (None, None)


def test_a_version_that_is_not_promoted_again_after_all_keeps_its_place_in_the_history(home: Settings, save) -> None:
    for text in ("one", "two", "three", "four"):
        save(text)
    for version in (1, 2, 3):
        promote(home, "router", version)
    before = champions(home, "router")
    run_sql(
        home,
        "CREATE TRIGGER other AFTER UPDATE ON model_version_tags WHEN NEW.key = 'promoted' AND NEW.version = 2 "
        "BEGIN UPDATE registered_model_aliases SET version = 4; END",
    )
    with pytest.raises(RegistryError, match="the champion is router@4"):
        promote(home, "router", 2)
    run_sql(home, "DROP TRIGGER other")
    run_sql(home, "UPDATE registered_model_aliases SET version = 3")
    assert champions(home, "router") == before


def test_a_turn_is_no_project(home: Settings, save) -> None:
    save("one")
    with promotion_turn(home, "router"), session(home, "test") as mlflow:
        assert mlflow.get_registered_model(f"router{SUFFIX}").tags[TURN]
        assert list_projects(home) == ["router"]
        assert [model.name for model in mlflow.search_registered_models()] == ["router", f"router{SUFFIX}"]
    with session(home, "test") as mlflow:
        assert [model.name for model in mlflow.search_registered_models()] == ["router"]


def test_a_home_takes_away_at_once_what_its_own_killed_process_left(home: Settings, save) -> None:
    save("one")
    code = (
        "import sys; from dspy_toolkit.registry.turns import promotion_turn; from dspy_toolkit.settings import Settings\n"
        "with promotion_turn(Settings(home=sys.argv[1]), 'router'): print('mine', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.home)],
        env=os.environ | {"PYTHONPATH": str(Path(registry.__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"mine\n"
        killed.send_signal(signal.SIGKILL)
    with session(home, "test") as mlflow, promotion_turn(home, "router", seconds=1e6) as mine:
        assert mine(mlflow)


def test_a_turn_that_does_not_end_goes_to_another_home_and_its_first_holder_can_tell(
    home: Settings, other: Settings, save
) -> None:
    save("one")
    with session(home, "test") as mlflow, promotion_turn(home, "router") as first:
        assert first(mlflow)
        with promotion_turn(other, "router", seconds=0.2) as second:
            assert second(mlflow) and not first(mlflow)
        # And the first one's end takes nothing from whoever came after.
        after = mlflow.create_registered_model(f"router{SUFFIX}", tags={TURN: "another's"})
    with session(home, "test") as mlflow:
        assert mlflow.get_registered_model(after.name).tags[TURN] == "another's"
