"""`dspy-toolkit serve` and its keys; serving in somebody's own application."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dspy_toolkit.serving import serving_router
from dspy_toolkit.settings import Settings
from tests.cli.conftest import command  # noqa: F401
from tests.lm.openai_server import OpenAIServer
from tests.serving.conftest import fake

ROOT = Path(__file__).parents[2]


def test_keys_are_added_listed_and_revoked(command: Callable[..., Any]) -> None:  # noqa: F811
    made = command("serve", "keys", "add", "app", "--scope", "predict", "--scope", "admin")
    assert re.fullmatch(r"dtk_[0-9a-f]{8}_[\w-]{43}\n", made.out), made.err
    listed = command("serve", "keys", "list").out
    assert "app" in listed and made.out.strip() not in listed
    assert "already" not in command("serve", "keys", "add", "app").out
    assert command("serve", "keys", "add", "app").code == 1
    (shown,) = json.loads(command("serve", "keys", "list", "--json").out)
    assert shown["name"] == "app" and set(shown) == {"id", "name", "scopes", "created"}, "never what opens the door"
    assert "is revoked" in command("serve", "keys", "revoke", "app").out
    told = json.loads(command("serve", "keys", "add", "other", "--json").out)
    assert told["key"] and told["scopes"] == ["predict"]
    assert "no key 'app'" in command("serve", "keys", "revoke", "app").err


def test_what_cannot_be_served_is_one_line(
    command: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_to_all = command("serve", "--host", "0.0.0.0")
    assert open_to_all.code == 1 and "keys add" in open_to_all.err
    nothing = command("serve", "--port", "0")
    assert nothing.code == 1 and "There is no champion to serve yet" in nothing.err and "Traceback" not in nothing.err

    whole = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    missing = command("serve", "--port", "0")
    assert (
        missing.code == 1
        and missing.err == "Error: Serving needs FastAPI and uvicorn. Run `pip install 'dspy-toolkit[serve]'`.\n"
    )


def test_the_command_serves_until_sigterm_and_finishes_what_it_accepted(promoted: Settings) -> None:
    """In a process of its own, with a model elsewhere."""
    with OpenAIServer(lambda _: {"label": "number"}) as model:
        environment = os.environ | {
            "DSPY_TOOLKIT_HOME": str(promoted.path()),
            "DSPY_TOOLKIT_LM__MODEL": "openai/small",
            "DSPY_TOOLKIT_LM__API_BASE": model.address,
            "DSPY_TOOLKIT_LM__API_KEY": "sk-test-of-serving",
            "PYTHONPATH": str(ROOT),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", "from dspy_toolkit.cli import main; main()", "serve", "--port", "0"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            address = re.search(r"http://127.0.0.1:\d+", line)
            assert address, (line, process.stderr.read())
            assert line.startswith("Serving questions@1 at ")
            said = httpx.post(f"{address[0]}/v1/programs/questions/predict", json={"text": "How many?"}, timeout=60)
            assert said.status_code == 200 and said.json()["prediction"] == {"label": "number"}
            assert said.json()["usage"]["model_calls"] == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (0, -signal.SIGTERM)
            errors = process.stderr.read()
            assert "Traceback" not in errors and "sk-test" not in errors
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


@pytest.mark.anyio
async def test_an_application_of_ones_own_has_the_routes(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    app = FastAPI()
    app.include_router(serving_router(settings), prefix="/programs-of-ours")
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:80") as http,
    ):
        said = await http.post("/programs-of-ours/v1/programs/questions/predict", json={"text": "Who?"})
        missing = await http.post("/programs-of-ours/v1/programs/nobody/predict", json={})
    assert said.json()["prediction"] == {"label": "person"}
    assert missing.json()["error"]["code"] == "no_such_program"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
