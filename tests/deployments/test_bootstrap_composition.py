"""What compose.yaml starts works together: its commands as processes on loopback, with its environment, over a PostgreSQL of the test.

A run that fails on its worker becomes an alert, and one that reads MLflow completes. Names of containers become addresses on
loopback, and the volume a folder; all else is as it stands there.

Not covered: a container engine, the image, and that Docker Compose reads the file as `test_units` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.bootstrap import CLONE
from deployments.places import MARK
from deployments.services import end_all, marked
from dspy_toolkit.monitoring.alerts import read
from dspy_toolkit.settings import Settings
from tests.deployments.test_units import INSIDE, composition, ours
from tests.system.packages import kept_packages
from tests.system.postgres import PASSWORD, free_port, postgres

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

SECONDS = 600
TOOLKIT_PASSWORD = "toolkit:another-word"
SQL = """
import sys, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as database:
    for command in sys.argv[2:]:
        print(database.execute(command).statusmessage)
"""


@dataclass(frozen=True)
class Host:
    """Where the containers' places are here."""

    home: Path
    words: dict[str, str]
    environment: dict[str, str]

    def here(self, text: str) -> str:
        """A value or a word of the composition, with the places of this host."""
        for there, here in self.words.items():
            text = text.replace(there, here)
        return text

    def command(self, words: list[str]) -> list[str]:
        """A command, run by the Python of the tests."""
        program, *rest = words
        begin = [sys.executable] if program == "python" else [sys.executable, "-m", program]
        return begin + [self.here(word) for word in rest]

    def run(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """A command to its end, in a service's environment."""
        return subprocess.run(
            self.command(words),
            cwd=CLONE,
            env=self.of(name),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def of(self, name: str) -> dict[str, str]:
        """A service's environment."""
        given = {key: self.here(value) for key, value in ours()[name].environment.items() if value is not None}
        return self.environment | given

    @contextmanager
    def started(self, name: str) -> Iterator[None]:
        """A service that answers its health check, if it has one, until the block ends."""
        log, service = self.home.parent / f"{name}.log", ours()[name]
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(service.command or []), cwd=CLONE, env=self.of(name), stdout=output, stderr=output
            )
            try:
                if (check := service.healthcheck) is not None:
                    assert check.test[0] == "CMD"
                    wait_for(lambda: process.poll() is not None or not self.run(name, check.test[1:]).returncode)
                assert process.poll() is None, log.read_text()[-3000:]
                yield
                assert process.poll() is None, log.read_text()[-3000:]
            finally:
                process.terminate()
                process.wait(60)


def wait_for(condition: Callable[[], Any]) -> Any:
    """What it gives, once that is true."""
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, "it did not become true"
        time.sleep(0.5)
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    packages = kept_packages("psycopg", ["psycopg[binary]"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DSPY_TOOLKIT_"))}
    home, server, mlflow, pages = tmp_path / "home", free_port(), free_port(), free_port()
    with postgres() as database:
        base = database.rpartition("/")[0]
        environment = kept | {
            MARK: str(home),
            "DSPY_TOOLKIT_HOME": str(home),
            "DSPY_TOOLKIT_LM__LEASE": "share",
            "PYTHONPATH": packages,
            "PREFECT_SERVER_API_PORT": str(server),
            "MLFLOW_PORT": str(mlflow),
            "PAGES_PORT": str(pages),
        }
        words = {
            "${POSTGRES_PASSWORD:?}": PASSWORD,
            "${TOOLKIT_PASSWORD:?}": TOOLKIT_PASSWORD,
            "@postgres:5432": f"@{base.rpartition('@')[2]}",
            "//server:4200": f"//127.0.0.1:{server}",
            "127.0.0.1:4200": f"127.0.0.1:{server}",
            "mlflow:5000": f"127.0.0.1:{mlflow}",
            "127.0.0.1:5000": f"127.0.0.1:{mlflow}",
            "0.0.0.0": "127.0.0.1",
            "8090": str(pages),
            f"{INSIDE}/.dspy-toolkit": str(home),
        }
        # What the image does: the first database, and then the file of the composition.
        [config] = composition().configs.values()
        commands = ["CREATE DATABASE prefect", config.content]
        subprocess.run([sys.executable, "-c", SQL, database, *commands], env=environment, check=True)
        try:
            yield Host(home, words, environment)
        finally:
            end_all(marked(home))


def test_its_commands_work_together(host: Host) -> None:
    for name, service in composition().services.items():
        before = list(composition().services)[: list(composition().services).index(name)]
        assert set(service.depends_on) <= set(before), "started here in the order of the file"
    with host.started("server"), host.started("mlflow"):
        for _ in range(2):
            done = host.run("register", ours()["register"].command or [])
            assert done.returncode == 0, done.stdout + done.stderr
        with host.started("pages"), host.started("worker"):
            settings = Settings(home=host.home)
            address, (name, _, password) = host.of("worker")["PREFECT_API_URL"], TOOLKIT_PASSWORD.partition(":")
            with httpx.Client(base_url=address, auth=(name, password), timeout=60) as api:

                def ask(path: str, **body: Any) -> Any:
                    answer = api.post(path, json=body).raise_for_status()
                    return answer.json()

                def start(deployment: str, **parameters: Any) -> str:
                    found = api.get(f"/deployments/name/{deployment}").raise_for_status().json()
                    return ask(f"/deployments/{found['id']}/create_flow_run", parameters=parameters)["id"]

                def state(run: str) -> str:
                    return api.get(f"/flow_runs/{run}").raise_for_status().json()["state_type"]

                assert api.get("/work_pools/mlx").json()["type"] == "process"
                assert len(ask("/automations/filter")) > 10
                bad = start("optimize-program/nightly-router", project="nowhere")
                good = start("monitor-program/hourly", project="")
                wait_for(lambda: {state(bad), state(good)} <= {"FAILED", "CRASHED", "COMPLETED"})
                assert (state(bad), state(good)) == ("FAILED", "COMPLETED")
            [alert] = wait_for(lambda: [each for each in read(settings) if "failed optimize-program" in each.subject])
            assert "'nowhere' is no project that this machine knows" in alert.body
    # Each has its database: nothing was made in the home.
    assert not list(host.home.rglob("*.db"))
    uri = host.of("mlflow")["MLFLOW_BACKEND_STORE_URI"].replace("postgresql+psycopg:", "postgresql:")
    command = [sys.executable, "-c", SQL, uri, "SELECT * FROM experiments"]
    found = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=True)
    assert int(found.stdout.removeprefix("SELECT ")) >= 1
