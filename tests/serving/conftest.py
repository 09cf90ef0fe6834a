"""A real uvicorn on loopback, over a fake model and a home of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from dspy_toolkit.lm.litellm.provider import withdraw
from dspy_toolkit.registry import Manifest, load_version, promote, save_version
from dspy_toolkit.serving import create_app
from dspy_toolkit.serving.edge import Backend
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine, fake_connection, fake_engine
from dspy_toolkit.tracking import runs as tracking
from tests.conftest import QUESTIONS

SCORED = {"labels": ["number", "person"], "weights": [[1, 0], [0, 1]], "bias": [0.0, 0.0]}
"""The rule of an output of `questions` that is chosen by the model's own scores, as they are."""


class Running:
    """A server that answers."""

    def __init__(self, app: Any, server: uvicorn.Server, port: int) -> None:
        self.app, self.server, self.port = app, server, port
        self.address = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.address, timeout=20)

    @property
    def back(self) -> Backend:
        return self.app.state.dspy_toolkit_serving

    def ask(self, name: str = "questions", /, headers: dict[str, str] | None = None, **inputs: Any) -> httpx.Response:
        return self.http.post(f"/v1/programs/{name}/predict", json=inputs, headers=headers)


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Serve until the block ends; then everything accepted was finished."""
    app = create_app(settings)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), name="uvicorn")
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        found = Running(app, server, listening.getsockname()[1])
        with found.http:
            yield found
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def wait_for(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """What the condition gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
    return found


_made: list[FakeEngine] = []


@pytest.fixture(autouse=True)
def fakes_end() -> Iterator[None]:
    """Of a test its own: the real engine belongs to the session."""
    yield
    while _made:
        engine = _made.pop()
        withdraw(engine.model)
        engine.close()


def fake(home: Settings, replies: Any, **options: Any) -> tuple[Settings, FakeEngine]:
    """Settings of a home whose model is a fake, with the registry asked often, and the fake."""
    connection = fake_connection(replies, home, **options)
    _made.append(fake_engine(connection))
    lm = home.lm.model_copy(update={"model": connection.model})
    serving = home.serving.model_copy(update={"poll_seconds": 0.1, "deadline_seconds": 20.0})
    return home.model_copy(update={"lm": lm, "serving": serving}), fake_engine(connection)


def serving(settings: Settings, **changes: Any) -> Settings:
    """These settings with others of `[serving]`."""
    table = type(settings.serving).model_validate({**settings.serving.model_dump(), **changes})
    return settings.model_copy(update={"serving": table})


def beside(settings: Settings, path: Path, model: str) -> Settings:
    """Serve `questions`, and a second project like it on another model, written to `path` and named as the file is."""
    path.write_text(QUESTIONS.replace('"questions"', f'"{path.stem}"'))
    settings = settings.model_copy(update={"projects": {path.stem: {"lm": {"model": model}}}})
    return serving(settings, programs=("questions", str(path)))


def save_changed(home: Settings, instructions: str = "", project: str = "questions", **levers: Any) -> int:
    """Save version 1 of `questions` once more, with other instructions or with levers (`dspy_toolkit.lm.levers`); or as
    the second project's (`beside`).
    """
    state, manifest = load_version(home, "questions@1")
    if instructions:
        state["signature"]["instructions"] = instructions
    manifest = Manifest(**manifest.model_dump() | {"project": project, "program_sha256": ""})
    run_id = tracking.open_run(home, project, f"optimize {project}")
    return save_version(home, project, state | levers, manifest, run_id)


@pytest.fixture
def promoted(home: Settings, save_questions: Callable[..., int]) -> Settings:
    """A home in which version 1 of `questions` is the champion."""
    promote(home, "questions", save_questions())
    return home
