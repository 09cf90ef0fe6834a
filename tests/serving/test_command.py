"""`dspy-toolkit serve` and its keys; serving in somebody's own application."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dspy_toolkit.serving import serving_router
from dspy_toolkit.settings import Settings
from tests.cli.conftest import command  # noqa: F401
from tests.lm.openai_server import OpenAIServer
from tests.serving.conftest import fake, wait_for

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


@contextmanager
def serving_process(home: Settings, model: OpenAIServer, **options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dspy-toolkit serve` in a process of its own, with a model elsewhere; the process and its address."""
    environment = os.environ | {
        "DSPY_TOOLKIT_HOME": str(home.path()),
        "DSPY_TOOLKIT_LM__MODEL": "openai/small",
        "DSPY_TOOLKIT_LM__API_BASE": model.address,
        "DSPY_TOOLKIT_LM__API_KEY": "sk-test-of-serving",
        "DSPY_TOOLKIT_OBSERVE__LOG_LEVEL": "INFO",
        "PYTHONPATH": str(ROOT),
        **{f"DSPY_TOOLKIT_SERVING__{name}": value for name, value in options.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from dspy_toolkit.cli import main; main()", "serve", "--port", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+", line)
        assert address, (line, process.stderr.read())
        assert line.startswith("Serving questions@1 at ")
        yield process, address[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def log_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The lines of JSON that an ended server wrote to stderr, one a request."""
    assert process.stderr is not None
    errors = process.stderr.read()
    assert "Traceback" not in errors and "sk-test" not in errors
    return [json.loads(line) for line in errors.splitlines() if "request_id" in line]


def test_the_command_serves_until_sigterm_and_its_log_is_json(promoted: Settings) -> None:
    with OpenAIServer(lambda _: {"label": "number"}) as model, serving_process(promoted, model) as (process, address):
        path = f"{address}/v1/programs/questions/predict"
        said = httpx.post(path, json={"text": "How many?"}, headers={"X-Request-Id": 'a "\t" of mine'}, timeout=60)
        assert said.status_code == 200 and said.json()["prediction"] == {"label": "number"}
        assert said.json()["usage"]["model_calls"] == 1
        assert httpx.get(f"{address}/nowhere").status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        lines = log_of(process)
    first, second = lines
    assert first["request_id"] == said.json()["request_id"] and first["client_request_id"] == 'a "\t" of mine'
    assert (first["status"], first["program"], first["version"], first["cached"]) == (200, "questions", 1, False)
    assert (second["method"], second["path"], second["status"], second["code"]) == ("GET", "/nowhere", 404, "not_found")
    assert "inputs" not in first


def test_sigterm_under_load_answers_all_that_was_accepted(promoted: Settings) -> None:
    """Four are worked on and twenty wait for that when the signal comes; nobody else is let in, and none of them is lost."""
    opened = threading.Event()

    def say(_: Any) -> dict[str, str]:
        assert opened.wait(60)
        return {"label": "number"}

    asked, streamed = list[httpx.Response](), list[str]()

    def ask(address: str, number: int) -> None:
        asked.append(httpx.post(f"{address}/predict", json={"text": f"How many {number}?"}, timeout=120))

    def stream(address: str, number: int) -> None:
        streamed.append(httpx.post(f"{address}/stream", json={"text": f"How much {number}?"}, timeout=120).text)

    def numbers(address: str) -> tuple[str, ...]:
        text = httpx.get(f"{address}/metrics", timeout=60).text
        return tuple(re.findall(r"^dspy_toolkit_serving_(?:active|waiting)_requests (\S+)$", text, re.MULTILINE))

    def closed(address: str) -> bool:
        try:
            httpx.get(f"{address}/healthz", timeout=60)
        except httpx.TransportError:  # refused, or taken by the kernel and never by the server
            return True
        return False

    with OpenAIServer(say) as model, serving_process(promoted, model, CONCURRENCY="4") as (process, address):
        programs = f"{address}/v1/programs/questions"
        threads = [threading.Thread(target=ask, args=(programs, number)) for number in range(20)]
        threads += [threading.Thread(target=stream, args=(programs, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: numbers(address) == ("4.0", "20.0"), 60)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: closed(address), 60)
        assert process.poll() is None and not asked and not streamed
        opened.set()
        for thread in threads:
            thread.join(120)
        assert process.wait(60) == 0
        lines = log_of(process)
    assert [answer.status_code for answer in asked] == [200] * 20
    assert all(answer.json()["prediction"] == {"label": "number"} for answer in asked)
    assert len(streamed) == 4 and all("event: prediction" in text.split("\n\n")[-2] for text in streamed)
    done = [line for line in lines if line["path"].startswith("/v1/programs/")]
    assert len(done) == 24 and {line["status"] for line in done} == {200}


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
