"""The nightly deployment on a Prefect server and a worker of its own, with the real embedded model."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AUTH = "nightly:a password of the tests"
PREFECT = [str(Path(sys.executable).parent / "prefect"), "--no-prompt"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(tmp_path: Path, fresh_home: dict[str, str], films: Path) -> dict[str, str]:
    port = free_port()
    return fresh_home | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_API_AUTH_STRING": AUTH,
        # What a deployment may name.
        "DSPY_TOOLKIT_PROJECTS__FILMS__LOCATION": str(films),
        "DO_NOT_TRACK": "1",
        "PORT": str(port),
    }


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    with (tmp_path / "server.log").open("w") as log:
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", environment["PORT"]]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
        try:
            wait_for(f"{environment['PREFECT_API_URL']}/health", process)
            yield
        finally:
            stop(process)


@pytest.fixture
def worker(environment: dict[str, str], server: None, tmp_path: Path) -> Iterator[Path]:
    run(["work-pool", "create", "mlx", "--type", "process"], environment)
    run(["deploy", "--all"], environment)
    log_path = tmp_path / "worker.log"
    with log_path.open("w") as log:
        command = [*PREFECT, "worker", "start", "--pool", "mlx"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
        try:
            yield log_path
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Prefect makes an interrupt of the signal to end, which is ignored where these tests are a job in the background."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"nothing answers at {address}")


def run(arguments: list[str], environment: dict[str, str], timeout: float = 300) -> str:
    done = subprocess.run(
        [*PREFECT, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def race_on_workers(environment: dict[str, str]) -> str:
    """What `compare_optimizers --workers` prints, with a budget for one arm."""
    command = [
        sys.executable,
        "-m",
        "flows.compare_optimizers",
        "--project",
        "films",
        "--budget",
        "100",
        "--workers",
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_nightly_deployment_and_the_arms_of_a_race_run_on_a_worker(
    environment: dict[str, str], worker: Path
) -> None:
    parameters = json.dumps({"project": "films", "optimizer": "bootstrap", "budget": "light"})
    run(
        [
            "deployment",
            "run",
            "optimize-program/nightly-router",
            "--params",
            parameters,
            "--watch",
            "--watch-timeout",
            "900",
        ],
        environment,
        timeout=1000,
    )
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id

    settings = load_settings(home=environment["DSPY_TOOLKIT_HOME"])
    client = connect(settings)
    found = client.search_runs([experiment_id(client, settings)])
    (recorded,) = (run for run in found if run.data.params["optimizer"] != "none")
    assert recorded.data.tags["project"] == "films"
    assert recorded.data.tags["outcome"] in ("promoted", "refused", "unchanged")
    assert recorded.data.metrics["val_baseline"] >= 0

    printed = race_on_workers(environment)
    assert "The race" in printed
    assert "labelled" in printed
    arms = run(["flow-run", "ls", "--flow-name", "run-arm", "--state-type", "COMPLETED"], environment)
    assert arms.count("COMP") >= 4, "two rounds of one arm and the baseline"
