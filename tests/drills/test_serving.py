"""Serving is killed while it answers and writes down what users say."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dspy_toolkit.feedback import feedback_file, read_feedback
from dspy_toolkit.registry import champion
from dspy_toolkit.settings import Settings
from tests.drills.conftest import Saw
from tests.drills.forks import MODEL, ROOT
from tests.serving.conftest import promoted  # noqa: F401

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("DRILL_SERVING_KILLS", "10"))
CLIENTS = 4


@contextmanager
def served(home: Settings, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """A server that answers: its process, its address, and the seconds until it did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": str(home.path()), "LM__MODEL": MODEL, "LM__LEASE": "share", "SERVING__PORT": str(port)}
    environment = os.environ | {f"DSPY_TOOLKIT_{name}": value for name, value in own.items()}
    began = time.monotonic()
    with log.open("ab") as out:
        command = [sys.executable, "-m", "tests.drills.serve"]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=out)
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield process, address, time.monotonic() - began
    finally:
        process.kill()
        process.wait(30)


def say(address: str, told: list[str]) -> None:
    """Ask and say what one thinks of the answers until the server is gone; `told` gets what it has confirmed."""
    with httpx.Client(base_url=address, timeout=60) as http:
        number = 0
        try:
            while True:
                number += 1
                asked = http.post("/v1/programs/questions/predict", json={"text": f"{threading.get_ident()} {number}"})
                request = asked.json()["request_id"]
                said = http.post("/v1/feedback", json={"request_id": request, "labels": {"label": "number"}})
                assert (asked.status_code, said.status_code) == (200, 201)
                told.append(request)
        except httpx.HTTPError:
            return


@pytest.mark.drill(28, "SIGKILL of serving while it answers and takes feedback")
def test_serving_is_killed(promoted: Settings, tmp_path: Path, saw: Saw) -> None:  # noqa: F811
    chance, told, slowest = random.Random(28), list[str](), 0.0
    for _ in range(KILLS):
        with served(promoted, tmp_path / "log") as (process, address, seconds):
            slowest = max(slowest, seconds)
            clients = [threading.Thread(target=say, args=(address, told)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.2, 2))
            process.kill()
            for client in clients:
                client.join(60)
                assert not client.is_alive()
    with served(promoted, tmp_path / "log") as (_, address, _):
        asked = httpx.post(f"{address}/v1/programs/questions/predict", json={"text": "Still there?"}, timeout=60).json()
        said = {"request_id": asked["request_id"], "rating": 1}
        assert httpx.post(f"{address}/v1/feedback", json=said, timeout=60).status_code == 201
    kept = [entry.request_id for entry in read_feedback(promoted.path(), "questions")]
    assert told and set(told) <= set(kept) and asked["request_id"] in kept
    assert len(kept) == len(set(kept)) and feedback_file(promoted.path(), "questions").read_bytes().endswith(b"\n")
    assert asked["version"] == champion(promoted, "questions").version == 1
    saw(
        f"{KILLS} kills: all {len(told)} pieces of feedback that were confirmed were kept, and no line was torn",
        slowest,
    )
