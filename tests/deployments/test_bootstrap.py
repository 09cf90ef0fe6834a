"""What a Prefect server is told, and what is cancelled when all is taken down: on a real server, started as `make up` starts it.

Not covered: all services together, which `tests/system/test_make_up.py` has.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deployments.automations import BLOCK, automations
from deployments.bootstrap import CLONE, DATABASE_VARIABLES, USED, may_have_runs, services_of
from deployments.places import HOST, POOL, Places, Ports
from deployments.registering import crash_lost_runs, end_runs, unfinished
from deployments.services import marked
from dspy_toolkit.settings import Settings
from tasks.policy import limit_name
from tests.system.postgres import free_port

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PASSWORD = "toolkit:a-word-that-nobody-may-see"
SECONDS = 240


@dataclass(frozen=True)
class Machine:
    """A home, and the ports of its services."""

    places: Places

    def command(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """`python -m deployments.bootstrap …` at a terminal that knows of nothing but this home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DSPY_TOOLKIT_"))}
        said = {"DSPY_TOOLKIT_HOME": str(self.places.settings.path()), "PYTHONPATH": str(CLONE)}
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.bootstrap", *words],
            cwd=self.places.settings.path().parent, env=kept | said | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        with self.command(*words, **environment) as running:
            said, _ = running.communicate(timeout=SECONDS)
        return running.returncode, said

    def states(self) -> dict[uuid.UUID, str]:
        """Id of a run → type of its state, in Prefect's database."""
        with closing(sqlite3.connect(self.places.settings.path("prefect", "prefect.db"))) as database:
            rows = database.execute("SELECT id, state_type FROM flow_run").fetchall()
        return {uuid.UUID(each): state for each, state in rows}


def machine(folder: Path, patch: pytest.MonkeyPatch) -> Machine:
    """A home that services may be started in, at ports that nobody has."""
    patch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    settings = Settings(home=folder / "home")
    settings.path("services").mkdir(parents=True)
    return Machine(Places(CLONE, settings, Ports(*(free_port() for _ in range(4)))))


def client_of(places: Places) -> SyncPrefectClient:
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(places.api, auth_string=PASSWORD)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, str]]:
    """A server that is up, and what `register` printed, which was asked for before it answered."""
    with pytest.MonkeyPatch.context() as patch:
        made = machine(tmp_path_factory.mktemp("served"), patch)
        # From another home: what the environment says of the server is all that it may need.
        other = machine(tmp_path_factory.mktemp("elsewhere"), patch)
        server = services_of(made.places)["server"]
        with other.command(
            "register", PREFECT_API_URL=made.places.api, PREFECT_API_AUTH_STRING=PASSWORD, PAGES_PORT="18123"
        ) as first:
            try:
                server.start(made.places.environment, CLONE)
                server.wait(time.monotonic() + SECONDS)
                printed, _ = first.communicate(timeout=SECONDS)
                assert first.returncode == 0, printed
                yield made, printed
            finally:
                first.kill()
                server.stop()


@pytest.fixture
def on_it(served: tuple[Machine, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of the server; what the functions under test make of the environment is one too."""
    made, _ = served
    with client_of(made.places) as prefect:
        monkeypatch.setattr("deployments.registering.client", lambda: client_of(made.places))
        yield prefect


def begin(prefect: SyncPrefectClient, state: Any, count: int = 1) -> set[Any]:
    """The ids of runs in that state, which nobody works on."""
    from prefect import flow

    @flow
    def left_alone() -> None: ...

    return {prefect.create_flow_run(left_alone, state=state).id for _ in range(count)}


def with_the_runs_of(made: Machine, folder: Path, patch: pytest.MonkeyPatch) -> Machine:
    """A machine that is up as far as its files say, with a copy of the other's database, and no process."""
    left = machine(folder, patch)
    left.places.settings.path("prefect").mkdir()
    with (
        closing(sqlite3.connect(made.places.settings.path("prefect", "prefect.db"))) as from_,
        closing(sqlite3.connect(left.places.settings.path("prefect", "prefect.db"))) as to,
    ):
        from_.backup(to)
    (left.places.folder / USED).write_text(json.dumps(vars(left.places.ports)))
    return left


@pytest.mark.soak
def test_register_waits_and_tells_the_server_of_the_environment_everything_once(
    served: tuple[Machine, str], on_it: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.events.actions import SendNotification

    made, printed = served
    assert printed == f"{made.places.api} knows the pool, the limit, the automations and the deployments.\n"

    def known() -> dict[str, Any]:
        pool = on_it.read_work_pool(POOL)
        return {
            "pool": (pool.type, pool.id),
            "limit": on_it.read_global_concurrency_limit_by_name(limit_name()).limit,
            "automations": sorted((each.name, each.id) for each in on_it.read_automations()),
            "deployments": sorted((each.name, each.id) for each in on_it.read_deployments()),
        }

    first = known()
    assert first["pool"][0] == "process" and first["limit"] == 1
    assert [name for name, _ in first["automations"]] == sorted(each.name for each in automations("", uuid.uuid4()))
    wanted = [each["name"] for each in yaml.safe_load((CLONE / "prefect.yaml").read_text())["deployments"]]
    assert [name for name, _ in first["deployments"]] == sorted(wanted)
    told = on_it.read_block_document_by_name(BLOCK, "custom-webhook")
    assert told.data["url"] == "http://127.0.0.1:18123/alerts", "the port of PAGES_PORT, on the server's own machine"
    actions = [action for each in on_it.read_automations() for action in each.actions]
    bodies = [action.body for action in actions if isinstance(action, SendNotification)]
    assert any(f"Look at {made.places.server}/runs/" in body for body in bodies)

    again = machine(tmp_path, monkeypatch)
    asked = {"PREFECT_API_URL": f"{made.places.api}/", "PREFECT_API_AUTH_STRING": PASSWORD, "PAGES_PORT": "18123"}
    assert again.run("register", **asked) == (0, printed)
    assert known() == first
    assert not (CLONE / "prefect.toml").exists(), "that is for `make up`"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "No Prefect server is named. Set PREFECT_API_URL"),
        ({"PREFECT_API_URL": "127.0.0.1:9/api"}, "Write an address such as"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "No Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_register_without_a_server_is_one_clear_error(
    environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = machine(tmp_path, monkeypatch).run("register", "--patience", "0", **environment)
    assert code == 1 and said in printed and "Traceback" not in printed


def test_register_with_another_password_is_one_clear_error_and_ours_is_not_sent(
    served: tuple[Machine, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = served
    home = machine(tmp_path, monkeypatch)
    # The password that was drawn for this home is the server's, by chance: it is not for a server of somebody else.
    (home.places.folder / "password.secret").write_text(PASSWORD.partition(":")[2])
    for given in ({}, {"PREFECT_API_AUTH_STRING": "toolkit:a guess"}):
        code, printed = home.run("register", PREFECT_API_URL=made.places.api, **given)
        assert code == 1 and "does not take the password. Set PREFECT_API_AUTH_STRING" in printed
        assert "Traceback" not in printed


def test_runs_that_died_with_this_machines_worker_have_crashed_and_no_others(
    served: tuple[Machine, str], on_it: SyncPrefectClient
) -> None:
    from prefect.states import Running

    places = served[0].places
    [lost], [alive], [elsewhere] = (begin(on_it, Running()) for _ in range(3))
    for run, worker in ((lost, places.worker), (alive, places.worker), (elsewhere, "another-mlx")):
        on_it.update_flow_run_labels(run, {"prefect.worker.name": worker})
    mine = os.environ | {"PREFECT__FLOW_RUN_ID": str(alive)}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=mine, stdin=subprocess.PIPE) as process:
        try:
            assert crash_lost_runs(places) == 1
        finally:
            process.kill()
    states = {run: on_it.read_flow_run(run).state_type for run in (lost, alive, elsewhere)}
    assert states == {lost: "CRASHED", alive: "RUNNING", elsewhere: "RUNNING"}


def test_down_starts_a_server_that_is_dead_and_cancels_what_it_left_running(
    served: tuple[Machine, str], on_it: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed, Pending, Running

    made, _ = served
    running, pending, over = (begin(on_it, state) for state in (Running(), Pending(), Completed()))
    left = with_the_runs_of(made, tmp_path, monkeypatch)
    count = len(unfinished(on_it))
    server = services_of(left.places)["server"]
    code, said = left.run("down")
    assert code == 0, said
    assert "The server is down, and runs may be under way: it is started" in said
    assert f"\n{count} runs cancelled\nserver has ended\n" in said
    states = left.states()
    assert {states[each] for each in running | pending} == {"CANCELLED"}
    assert {states[each] for each in over} == {"COMPLETED"}
    assert marked(left.places.settings.path()) == [] and server.process() is None
    log = server.log.read_bytes()
    assert left.run("down") == (0, ""), "there is nothing more to cancel"
    assert server.log.read_bytes() == log, "and no server was started for it"


def test_down_says_that_runs_could_not_be_cancelled(
    served: tuple[Machine, str], on_it: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Running

    begin(on_it, Running())
    left = with_the_runs_of(served[0], tmp_path, monkeypatch)
    port = left.places.ports.server
    with socket.create_server((HOST, port)):
        code, said = left.run("down")
    assert code == 1 and f"something else has port {port}" in said and "may be Running" in said
    assert "Traceback" not in said
    assert not (left.places.folder / USED).exists(), "the rest is ended all the same"


def test_whether_a_dead_server_may_have_left_runs(
    served: tuple[Machine, str], on_it: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Cancelling

    begin(on_it, Cancelling())
    left = with_the_runs_of(served[0], tmp_path, monkeypatch).places
    file = left.settings.path("prefect", "prefect.db")
    assert may_have_runs(left)
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE flow_run SET state_type = 'COMPLETED' WHERE state_type != 'SCHEDULED'")
        database.commit()
    assert not may_have_runs(left)
    for name in DATABASE_VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "postgresql+asyncpg://elsewhere/prefect")
            assert may_have_runs(left), "nobody can see into that one"
    file.write_bytes(b"of another version of Prefect")
    assert may_have_runs(left)
    (left.folder / USED).unlink()
    assert not may_have_runs(left), "it was taken down: what runs was started by hand, with a temporary server"
    monkeypatch.setenv(DATABASE_VARIABLES[0], "postgresql+asyncpg://elsewhere/prefect")
    assert not may_have_runs(left)
    monkeypatch.delenv(DATABASE_VARIABLES[0])
    (left.folder / USED).write_text("{}")
    file.unlink()
    assert not may_have_runs(left)


def test_more_runs_than_the_server_puts_on_a_page_are_all_cancelled(
    served: tuple[Machine, str], on_it: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Pending

    class FewOnAPage(SyncPrefectClient):
        """The server's pages have 200 runs, which take long to make; at most 3 are asked for at once."""

        def read_flow_runs(self, **asked: Any) -> list[Any]:
            return super().read_flow_runs(**(asked | {"limit": 3}))  # pyright: ignore[reportArgumentType]

    def few() -> SyncPrefectClient:
        return FewOnAPage(served[0].places.api, auth_string=PASSWORD)

    begun = begin(on_it, Pending(), 7)
    there = [run.id for run in unfinished(on_it)]
    with few() as prefect:
        assert len(prefect.read_flow_runs()) == 3
        again = [run.id for run in unfinished(prefect)]
    assert begun <= set(again) and sorted(again) == sorted(there)
    monkeypatch.setattr("deployments.registering.client", few)
    assert end_runs(patience=0) == len(there)
    assert unfinished(on_it) == []
