"""The whole flow on models at servers that speak OpenAI's API: with two roles, through a fault that passes and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.litellm import patience
from dspy_toolkit.registry import champion
from tests.lm.openai_server import AWAY, BROKEN, BUSY, DROP, OpenAIServer

pytestmark = pytest.mark.usefixtures("prefect_server")
TASK_KEY, REFLECTION_KEY = "sk-planted-task", "sk-planted-reflection"


def label(body: dict[str, Any]) -> dict[str, str]:
    """The model of `conftest.answer`: it sees a digit once it has seen demonstrations."""
    taught = len(body["messages"]) > 2
    question = body["messages"][-1]["content"].split("[[ ## text ## ]]\n")[1].split("\n")[0]
    return {"label": "number" if taught and any(sign.isdigit() for sign in question) else "person"}


@pytest.fixture
def servers(playground: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OpenAIServer, OpenAIServer]]:
    """(of the task, of reflection); the playground's settings name them."""
    monkeypatch.setattr(patience, "FAILED_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    with (
        OpenAIServer(label) as task,
        OpenAIServer(lambda body: {"better_instruction": "Label it by its digits, please."}) as other,
    ):
        given = {
            "LM__MODEL": "openai/NAME",
            "LM__API_BASE": task.address,
            "LM__API_KEY": TASK_KEY,
            "REFLECTION__MODEL": "openai/LARGE",
            "REFLECTION__API_BASE": other.address,
            "REFLECTION__API_KEY": REFLECTION_KEY,
        }
        for name, value in given.items():
            monkeypatch.setenv(f"DSPY_TOOLKIT_{name}", value)
        yield task, other


def optimize(playground: Any) -> Any:
    from flows.optimize_program import optimize_program

    return optimize_program(playground.location, optimizer="bootstrap", budget="120")


def holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_the_whole_flow(playground: Any, servers: tuple[OpenAIServer, OpenAIServer]) -> None:
    task, other = servers
    task.faults.extend([BUSY, AWAY, BROKEN, DROP])
    decision = optimize(playground)
    assert decision.outcome == "promoted", decision.reason
    assert champion(playground.settings, "questions").version == 2
    assert playground.engine.requests == []
    assert {each.authorization for each in task.received} == {f"Bearer {TASK_KEY}"}
    assert {each.authorization for each in other.received} == {f"Bearer {REFLECTION_KEY}"}
    assert {each.body["model"] for each in (*task.received, *other.received)} == {"NAME", "LARGE"}
    assert [each.body["max_tokens"] for each in other.received] == [16_000]
    for key in (TASK_KEY, REFLECTION_KEY):
        assert holding(playground.settings.path(), key) == []

    assert optimize(playground).outcome in ("unchanged", "refused")
    assert champion(playground.settings, "questions").version == 2


@pytest.mark.soak
def test_a_server_that_stays_away_is_tried_by_the_task_and_ends_in_one_line(
    playground: Any,
    servers: tuple[OpenAIServer, OpenAIServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dspy_toolkit.cli.boundary import boundary
    from tasks.steps import probe_program

    task, _ = servers
    task.always = AWAY
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.02)  # one more attempt at most in each call
    monkeypatch.setattr(probe_program.task, "retry_delay_seconds", [0, 0, 0])
    monkeypatch.setenv("DSPY_TOOLKIT_OPTIMIZE__THREADS", "1")
    with pytest.raises(SystemExit), boundary():
        optimize(playground)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: openai/NAME at {task.address} has no room now (HTTP 503: The model is loading).")
    assert 4 <= len(task.received) <= 8
    task.always = None
    assert optimize(playground).outcome == "promoted"
