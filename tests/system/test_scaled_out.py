"""Two workers as two machines have them: clones and homes of their own, and nothing shared but servers.

Prefect's server and MLflow's are on PostgreSQL; rows, programs and the results of tasks are in a bucket (moto's S3-compatible
server). The workers share a race; one is killed in the middle with its run, which is found by its missing heartbeats, and the
other takes its work over. Every server and worker is a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from tests.lm.openai_server import OpenAIServer
from tests.system.fresh_clone import Model, environment, make_clone, terminal
from tests.system.packages import bucket_packages
from tests.system.postgres import free_port, postgres, wait_for
from tests.system.test_make_up import started_by

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

RESULTS = """
from prefect.filesystems import RemoteFileSystem
RemoteFileSystem(basepath="s3://shared/results").save("shared-results", overwrite=True)
"""
RACE = f"""
make up
.venv/bin/python -c '{RESULTS}'
touch up
.venv/bin/python -m flows.compare_optimizers --project router --budget 100 --workers
touch raced
while [ ! -e looked ]; do sleep 0.3; done
echo "=== down"
make down
"""
DATABASES = """
import sys, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as database:
    for name in ("prefect", "mlflow"):
        database.execute(f"CREATE DATABASE {name}")
"""
BUCKET = "import boto3; boto3.client('s3').create_bucket(Bucket='shared')"
LOOK = """
import sys, fsspec
for folder in ("objects", "results"):
    print(len(fsspec.filesystem("s3").find(f"shared/{folder}")))
"""


class Shared(NamedTuple):
    """What both machines are told of the servers."""

    environment: dict[str, str]
    packages: str


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    """PostgreSQL, a bucket and MLflow's server, each a process on loopback."""
    packages = bucket_packages()
    with postgres() as database, ExitStack() as stack:
        base = database.rpartition("/")[0]
        bucket, mlflow = free_port(), free_port()
        amazon = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket}",
            "AWS_ACCESS_KEY_ID": "a key",
            "AWS_SECRET_ACCESS_KEY": "a secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        ours = os.environ | amazon | {"PYTHONPATH": packages, "MLFLOW_DISABLE_TELEMETRY": "true"}

        def run(*words: str) -> None:
            subprocess.run([sys.executable, *words], env=ours, cwd=tmp_path, check=True)

        def serve(port: int, *words: str) -> None:
            stack.enter_context(server([sys.executable, *words], port, ours, tmp_path))

        run("-c", DATABASES, database)
        serve(bucket, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(bucket))
        run("-c", BUCKET)
        serve(
            mlflow, "-m", "mlflow", "server", "--backend-store-uri", f"{base}/mlflow", "--artifacts-destination",
            "s3://shared/artifacts", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1",
        )  # fmt: skip
        said = {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"{base}/prefect".replace("postgresql:", "postgresql+asyncpg:"),
            "DSPY_TOOLKIT_REGISTRY__TRACKING_URI": f"http://127.0.0.1:{mlflow}",
            "DSPY_TOOLKIT_STORE__ADDRESS": "s3://shared/objects",
            "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "remote-file-system/shared-results",
            "DSPY_TOOLKIT_LM__LEASE": "share",
        }
        yield Shared(amazon | said, packages)


@contextmanager
def server(command: list[str], port: int, environment: dict[str, str], folder: Path) -> Iterator[None]:
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
        try:
            wait_for(port, process, log, 300)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def runs_in(folder: Path) -> dict[str, psutil.Process]:
    """The processes of flow runs that work in a folder, by the runs' ids."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            run = process.environ().get("PREFECT__FLOW_RUN_ID")
            if run and Path(process.cwd()) == folder:
                found[str(uuid.UUID(run))] = process
    return found


class Api:
    """Prefect's server, as the first clone's file knows it."""

    def __init__(self, clone: Path) -> None:
        said = dict(line.split(" = ") for line in (clone / "prefect.toml").read_text().splitlines() if " = " in line)
        name, _, password = said["api.auth_string"].strip('"').partition(":")
        self.http = httpx.Client(base_url=said["api.url"].strip('"'), auth=(name, password), timeout=30)

    def runs(self) -> dict[str, dict[str, Any]]:
        """Those that score a candidate, by their ids."""
        asked: dict[str, Any] = {"flows": {"name": {"any_": ["score-candidate"]}}, "limit": 200}
        return {run["id"]: run for run in self.http.post("/flow_runs/filter", json=asked).raise_for_status().json()}


def ended_as(runs: dict[str, dict[str, Any]], state: str) -> set[str]:
    return {number for number, run in runs.items() if run["state_type"] == state}


def jobs(runs: dict[str, dict[str, Any]], state: str) -> set[str]:
    """What the runs of a state were to score."""
    return {json.dumps(runs[number]["parameters"]["given"]["job"], sort_keys=True) for number in ended_as(runs, state)}


def test_a_worker_is_killed_in_the_middle_of_a_race(shared: Shared, tmp_path: Path) -> None:
    first, second = tmp_path / "first clone", tmp_path / "second clone"
    make_clone(first)
    make_clone(second)
    homes = [clone / ".dspy-toolkit" for clone in (first, second)]
    with OpenAIServer(Model()) as model, ExitStack() as stack:
        reader = environment(first, tmp_path / "HOME", model.address) | shared.environment
        reader["PYTHONPATH"] = os.pathsep.join([str(first), shared.packages])
        other: subprocess.Popen[bytes] | None = None
        try:
            with terminal(RACE, first, reader, tmp_path / "log") as at, (tmp_path / "second.log").open("w") as log:
                await_(lambda: (first / "up").exists(), 900, at)
                shutil.copy(first / "prefect.toml", second)
                api = Api(first)
                stack.callback(api.http.close)
                mine = reader | {
                    "DSPY_TOOLKIT_HOME": str(homes[1]),
                    "PYTHONPATH": os.pathsep.join([str(second), shared.packages]),
                    "PREFECT_HOME": str(tmp_path / "of the second"),
                    "TOOLKIT_SERVICES": str(homes[0]),
                    "DO_NOT_TRACK": "1",
                }
                command = [second / ".venv/bin/python", "-m", "prefect", "worker", "start", "--pool", "mlx"]
                other = subprocess.Popen(
                    [*command, "--name", "second", "--limit", "4"], cwd=second, env=mine, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
                seen: dict[Path, set[str]] = {first: set(), second: set()}

                def in_the_middle() -> bool:
                    """Whether the second has scored a candidate already, and is at another one."""
                    for clone, found in seen.items():
                        found.update(runs_in(clone))
                    now = api.runs()
                    done, at_work = (ended_as(now, state) & seen[second] for state in ("COMPLETED", "RUNNING"))
                    return bool(done and at_work & runs_in(second).keys())

                await_(in_the_middle, 900, at)
                killed = [
                    *runs_in(second).values(),
                    *psutil.Process(other.pid).children(recursive=True),
                    psutil.Process(other.pid),
                ]
                for process in killed:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                other.wait(30)
                await_(lambda: (first / "raced").exists(), 1800, at)
                runs = api.runs()
                kept = subprocess.run([sys.executable, "-c", LOOK], env=reader, capture_output=True, text=True)
                (first / "looked").touch()
                printed = at.wait(300)
        finally:
            left = started_by(homes[0])
            for process in left:
                process.kill()
    print(printed)
    race, _ = printed.split("=== down")
    assert "The pool" in race and "Traceback" not in race
    done = ended_as(runs, "COMPLETED")
    assert done & seen[first] and done & seen[second], "evaluations of both"
    assert jobs(runs, "CRASHED"), "one was killed"
    assert jobs(runs, "CRASHED") <= jobs(runs, "COMPLETED"), "what it was at was scored by the other"
    objects, results = map(int, kept.stdout.split())
    assert objects >= 3 and results >= 3, (kept.stdout, kept.stderr)
    for home in homes:
        assert not [path for path in (home / "objects").rglob("*") if path.is_file()], "an object is in a home"
    assert not (homes[0] / "prefect/prefect.db").exists(), "Prefect's database is not PostgreSQL"
    assert not left, left


def await_(there: Callable[[], object], seconds: float, at: Any) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until and at.shell.poll() is None, at.printed[-4000:]
        time.sleep(0.3)
