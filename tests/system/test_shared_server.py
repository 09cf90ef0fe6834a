"""Two homes, one MLflow server on PostgreSQL that keeps the files itself; every step a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.postgres import PASSWORD, free_port, postgres, wait_for

ROOT = Path(__file__).parents[2]
DRIVER = "psycopg[binary]"
COMMAND = "from dspy_toolkit.cli import main; main()"
OPTIMIZE = """
import sys
from pathlib import Path
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.settings import load_settings
from tests.scaffold.test_whole_way import Fresh

bench = Fresh(load_settings(), Path(sys.argv[1]))
release_baseline(bench.context(), bench.resolve())
run, _ = bench.whole(optimizer="labelled", budget="120")
print(run.decision.outcome, run.decision.version)
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


class Server(NamedTuple):
    """MLflow's server."""

    address: str
    artifacts: Path
    process: subprocess.Popen[bytes]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    driver = tmp_path / "driver"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target", str(driver), DRIVER]
    got = subprocess.run(pip, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"Make `pip install {DRIVER}` work. {got.stderr.strip()[-200:]}")
    port, log, artifacts = free_port(), tmp_path / "mlflow.log", tmp_path / "the server's files"
    with postgres() as database, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
             str(artifacts), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=output, stderr=output, cwd=tmp_path, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(driver), "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
        try:
            wait_for(port, process, log, 300)
            yield Server(f"http://127.0.0.1:{port}", artifacts, process)
        finally:
            with suppress(ProcessLookupError):  # the test may have ended it
                os.killpg(process.pid, 9)
            process.wait()


class Home(NamedTuple):
    """A home, and how its processes are started."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        """A command of the toolkit: exit code, stdout, stderr."""
        process = self.start("-c", COMMAND, *words)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err


def home(folder: Path, server: Server) -> Home:
    folder.mkdir()
    mine = {
        key: value for key, value in os.environ.items() if not key.startswith(("DSPY_TOOLKIT", "MLFLOW", "PREFECT"))
    }
    return Home(
        folder,
        mine | {"PYTHONPATH": str(ROOT), "DSPY_TOOLKIT_HOME": "home", "DSPY_TOOLKIT_LM__LEASE": "share",
                "DSPY_TOOLKIT_REGISTRY__TRACKING_URI": server.address, "DSPY_CACHEDIR": str(folder / "dspy")},
    )  # fmt: skip


def live(home: Home) -> list[int]:
    """The versions that are the champion, as this home sees it."""
    code, out, err = home.run("programs", "list", "triage", "--json")
    assert code == 0, err
    return [version["version"] for version in json.loads(out) if "champion" in version["aliases"]]


def test_what_one_home_promotes_the_other_one_has(server: Server, tmp_path: Path) -> None:
    here, there = home(tmp_path / "here", server), home(tmp_path / "there", server)
    process = here.start("-c", OPTIMIZE, str(tmp_path))
    out, err = process.communicate(timeout=500)
    assert out.split() == ["promoted", "2"], err
    project = str(tmp_path / "triage" / "project.toml")

    # The other home sees it, with its reasons, its messages and its files.
    assert live(there) == [2]
    assert "technical" in there.run("programs", "show", project)[1]
    code, _, err = there.run("programs", "export", "triage@champion", "--to", "triage.bundle")
    assert code == 0, err
    assert (there.folder / "triage.bundle").stat().st_size > 1000

    # A promotion from each side at once leaves one champion, and a history that can be walked.
    promoting = [
        each.start("-c", COMMAND, "programs", "promote", "triage@1", "--force", "--reason", "drill")
        for each in (here, there)
    ]
    for process in promoting:
        process.communicate(timeout=400)
    assert live(here) == [1]
    assert there.run("programs", "rollback", "triage")[0] == 0
    assert live(here) == [2]

    # The files are the server's, and neither home has a database or files of runs.
    assert [path.name for path in server.artifacts.rglob("manifest.json")]
    for each in (here, there):
        assert not {"mlflow.db", "artifacts"} & {path.name for path in (each.folder / "home").glob("*")}

    # Without the server a command is one line that says so, soon, and nobody sees the database's password.
    os.killpg(server.process.pid, 15)
    server.process.wait(60)
    code, out, err = there.run("programs", "list")
    assert (code, out) == (1, "") and err.startswith("Error: ") and err.count("\n") == 1
    assert server.address in err
    assert PASSWORD not in err
