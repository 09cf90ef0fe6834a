"""The champion moves whole or not at all, and can always be moved back."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dspy_toolkit import registry
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.project import ChampionPart
from dspy_toolkit.registry import champion, find_version, list_versions, promote, rollback
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.settings import Settings


def run_sql(home: Settings, statement: str) -> None:
    with closing(sqlite3.connect(home.path("mlflow.db"))) as database:
        database.execute(statement)
        database.commit()


def refuse_writes(home: Settings, table: str) -> None:
    """From now on the database refuses to write to `table`, as a full disk would, while the others still work."""
    for event in ("INSERT", "UPDATE"):
        run_sql(
            home,
            f"CREATE TRIGGER refuse_{table}_{event} BEFORE {event} ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
        )


def test_nothing_is_champion_before_the_first_promotion(home: Settings, save, tmp_path: Path) -> None:
    assert champion(Settings(home=tmp_path / "none"), "router") == ChampionPart(version=None, sha256=None)
    assert not (tmp_path / "none").exists()
    assert champion(home, "router") == ChampionPart(version=None, sha256=None)
    save("one")
    assert champion(home, "router") == ChampionPart(version=None, sha256=None)


def test_promotion_returns_what_it_replaced(home: Settings, save) -> None:
    first, second = save("one"), save("two")
    assert promote(home, "router", first) is None
    assert promote(home, "router", second) == first
    sha256 = find_version(home, "router@2").program_sha256
    assert champion(home, "router") == ChampionPart(version=second, sha256=sha256)


def test_promoting_the_champion_changes_nothing(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    promote(home, "router", save("two"))
    before = list_versions(home, "router")
    assert promote(home, "router", 2) == 1
    assert list_versions(home, "router") == before


def test_rollbacks_chain_to_the_first_champion(home: Settings, save) -> None:
    for text in ("one", "two", "three", "four"):
        save(text)
    for version in (1, 2, 4):
        promote(home, "router", version)
    assert [rollback(home, "router"), rollback(home, "router")] == [2, 1]
    with pytest.raises(RegistryError, match="router@1 is the first champion"):
        rollback(home, "router")
    assert promote(home, "router", 3) == 1
    assert rollback(home, "router") == 1


def test_rollback_before_any_promotion(home: Settings, save) -> None:
    save("one")
    with pytest.raises(RegistryError, match="Nothing of router is promoted yet; it has 1"):
        rollback(home, "router")


@hypothesis(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([1, 2, 3, 4]))
def test_rollback_undoes_promotion(home: Settings, save, order: list[int]) -> None:
    project = "p" + "".join(map(str, order))
    if champion(home, project).version is None:
        for number in order:
            save(f"{project} {number}", project=project)
        for version in order:
            promote(home, project, version)
        assert [rollback(home, project) for _ in order[1:]] == order[-2::-1]


def test_a_promotion_whose_alias_cannot_move_leaves_the_champion(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    refuse_writes(home, "registered_model_aliases")
    with pytest.raises(RegistryError, match="did not move to version 2: .*database or disk is full") as caught:
        promote(home, "router", 2)
    assert "\n" not in str(caught.value)
    assert champion(home, "router").version == 1
    # The way back was written before the alias was touched.
    assert find_version(home, "router@2").previous == 1


def test_a_promotion_whose_tag_cannot_be_written_does_not_move_the_alias(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    refuse_writes(home, "model_version_tags")
    with pytest.raises(RegistryError, match="router@2 was not promoted"):
        promote(home, "router", 2)
    assert champion(home, "router").version == 1


def test_a_first_promotion_that_fails_leaves_no_champion(home: Settings, save) -> None:
    save("one")
    refuse_writes(home, "registered_model_aliases")
    with pytest.raises(RegistryError):
        promote(home, "router", 1)
    assert champion(home, "router").version is None


def test_a_failed_save_leaves_no_version(home: Settings, save) -> None:
    save("one")
    refuse_writes(home, "model_versions")
    with pytest.raises(RegistryError, match="Cannot save a version of router"):
        save("two")
    assert [found.version for found in list_versions(home, "router")] == [1]


def test_an_alias_that_does_not_stick_is_noticed(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    save("two")
    run_sql(
        home,
        "CREATE TRIGGER keep AFTER UPDATE ON registered_model_aliases "
        "BEGIN UPDATE registered_model_aliases SET version = 1; END",
    )
    with pytest.raises(RegistryError, match="the registry says that the champion is router@1"):
        promote(home, "router", 2)


def test_a_comparison_with_an_older_champion_is_stale(home: Settings, save) -> None:
    promote(home, "router", save("one"))
    compared = champion(home, "router")
    save("two")
    save("three")
    promote(home, "router", 2, compared_with=compared)
    with pytest.raises(RegistryError, match="compared with router@1, but by now the champion is router@2"):
        promote(home, "router", 3, compared_with=compared)
    assert champion(home, "router").version == 2
    # Repeating the promotion that succeeded is not stale.
    assert promote(home, "router", 2, compared_with=compared) == 1


def test_promotions_at_once_take_turns(home: Settings, save) -> None:
    versions = [save(str(number)) for number in range(6)]
    start = threading.Barrier(len(versions))

    def race(version: int) -> int | None:
        start.wait()
        return promote(home, "router", version)

    with ThreadPoolExecutor(len(versions)) as pool:
        replaced = list(pool.map(race, versions))
    # In turns, every version but the last champion was replaced exactly once; and one replaced nothing.
    last = champion(home, "router").version
    assert sorted(replaced, key=lambda version: version or 0) == [None, *(v for v in versions if v != last)]
    assert [rollback(home, "router") for _ in versions[1:]]
    with pytest.raises(RegistryError, match="first champion"):
        rollback(home, "router")


def test_waiting_for_the_lock_ends(home: Settings) -> None:
    refused = pytest.raises(RegistryError, match="Another process has held")
    with registry_lock(home), refused as caught, registry_lock(home, seconds=0.05):
        pass
    assert caught.value.retryable


def test_the_lock_holds_between_processes(home: Settings) -> None:
    code = (
        "import sys; from dspy_toolkit.registry.lock import registry_lock; from dspy_toolkit.settings import Settings\n"
        "with registry_lock(Settings(home=sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    root = str(Path(registry.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.home)],
        env=os.environ | {"PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RegistryError, match="Another process has held"), registry_lock(home, seconds=0.05):
            pass
        other.communicate(timeout=30)
    with registry_lock(home, seconds=1):
        pass


def test_a_version_that_does_not_exist_cannot_be_promoted(home: Settings, save) -> None:
    save("one")
    with pytest.raises(RegistryError, match="No version 9 of router; it has 1"):
        promote(home, "router", 9)
