"""The whole flow on a model behind `mlx_lm.server`, as `openai/NAME` with its address: a well-behaved server that is not ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.history import read_history

ROOT = Path(__file__).parents[2]
NAME = "openai/default_model"
"""mlx_lm's name for the model that its server was started with."""
ROWS = 24
"""Few, and few calls: the server takes a second and more of a core for each."""
SECONDS = 240
SERVE = """
from dspy_toolkit.lm.models import blas, cpu

blas.preload()
from mlx_lm import server
from mlx_lm.models import llama

cpu.install(llama.Model.__new__(llama.Model))
server.main()
"""
"""With the engine's BLAS and functions for the CPU: on Linux mlx_lm alone is a hundred times slower."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


class Server:
    """`mlx_lm.server` on loopback, a process of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self._log = f"http://127.0.0.1:{port}/v1", log
        serve = [sys.executable, "-c", SERVE, "--model", str(model)]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*serve, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, stdout=output, stderr=output
            )

    def __enter__(self) -> Server:
        began = time.monotonic()
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() - began < SECONDS, self._log.read_text()
            time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def answered(self) -> int:
        """Chat completions that it has given."""
        return self._log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/models", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def server(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It serves the embedded model, expanded: MLX's product of quantized weights is slow on the CPU."""
    folder = tmp_path_factory.mktemp("mlx_lm server")
    source, expanded = model_home / "models" / "smollm2-135m", folder / "float32"
    command = [sys.executable, "-m", "benchmarks.lm.float32", str(source), str(expanded)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=SECONDS)
    with Server(expanded, folder / "log") as server:
        yield server


def test_the_whole_flow(server: Server, films: Path, tmp_path: Path) -> None:
    rows = films.with_name("films.csv")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[: 1 + ROWS]))
    (films.parent / "dspy-toolkit.toml").write_text(
        f'home = "{tmp_path / "home"}"\n'
        f'[lm]\nmodel = "{NAME}"\napi_base = "{server.address}"\napi_key = "any-key-will-do"\n'
        f"max_tokens = 12\ntimeout = {SECONDS}\n"
        # By default as long as a large model reflects, which a small one babbles to the end.
        "[reflection]\nmax_tokens = 24\n"
        # The server reads a beginning again that several requests bring at once, and reading is what takes it long.
        "[optimize]\nthreads = 4\n"
    )
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DSPY_TOOLKIT_"))}
    flow = [sys.executable, "-m", "flows.optimize_program", "--project", str(films)]
    done = subprocess.run(
        [*flow, "--optimizer", "labelled", "--budget", "40"],
        env=mine | {"PYTHONPATH": str(ROOT)},
        cwd=films.parent,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"films · labelled · {NAME}" in done.stdout

    (run,) = read_history(load_settings(home=tmp_path / "home")).runs
    assert run.model == NAME and run.outcome in ("promoted", "refused", "unchanged")
    assert 0 < run.lm_calls <= 40
    assert server.answered >= run.lm_calls
    assert "any-key-will-do" not in done.stdout + done.stderr
