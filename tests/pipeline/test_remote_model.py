"""`optimize()` without an orchestrator, on models at servers: instructions come from the one of `[reflection]`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit import optimize
from dspy_toolkit.errors import DeadlineExceeded
from dspy_toolkit.lm.litellm import patience
from dspy_toolkit.lm.litellm.translation import translate
from dspy_toolkit.settings import load_settings
from tests.lm.openai_server import BUSY, EMPTY, HANG, OpenAIServer
from tests.optimizers.toys import HINT, Toy, by_instruction, program, records


def scripted(toy: Toy) -> Any:
    """The toy's fake model, as a server's."""
    return lambda body: toy.reply(translate(body["messages"], {}, None)[0])


def test_instructions_come_from_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FAILED_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    toy, writer = Toy(tmp_path), Toy(tmp_path)
    toy.knows = by_instruction
    with OpenAIServer(scripted(toy)) as task, OpenAIServer(scripted(writer)) as reflection:
        task.faults.extend([BUSY, EMPTY])
        settings = load_settings(
            home=tmp_path / "home",
            lm={"model": "openai/NAME", "api_base": task.address, "api_key": "sk-task"},
            reflection={"model": "openai/LARGE", "api_base": reflection.address, "api_key": "sk-reflection"},
        )
        result = optimize(program(), records(110), optimizer="gepa", budget="200", settings=settings)
        assert result.improved, result.reason
        assert result.program.signature.instructions == HINT  # type: ignore[attr-defined]
        assert set(toy.kinds) == {"task"} and "task" not in writer.kinds
        assert {each.authorization for each in task.received} == {"Bearer sk-task"}
        assert {each.authorization for each in reflection.received} == {"Bearer sk-reflection"}
        assert {each.body["temperature"] for each in reflection.received} == {1.0}


def test_a_server_that_hangs_ends_in_one_line(tmp_path: Path) -> None:
    with OpenAIServer(lambda body: "") as server:
        server.always = HANG
        lm = {"model": "openai/NAME", "api_base": server.address, "timeout": 0.3}
        with pytest.raises(
            DeadlineExceeded, match=re.escape(f"openai/NAME at {server.address} did not answer within 0.3 s")
        ):
            optimize(program(), records(110), settings=load_settings(home=tmp_path / "home", lm=lm))
