"""The door for coding agents over stdio: an agent optimizes a project within what it may, and reads what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.scaffold import new_project
from tests.lm.openai_server import OpenAIServer
from tests.system.fresh_clone import Model, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
MOST = 400
"""LM calls that the agent may spend."""


def test_an_agent_optimizes_within_its_calls_and_reads_what_came_of_it(tmp_path: Path) -> None:
    from mcp import Client, StdioServerParameters

    made = new_project("triage", "classify", tmp_path)
    with OpenAIServer(Model()) as model:
        known = {"triage": {"location": str(made.project)}}
        server = StdioServerParameters(
            command=sys.executable,
            args=[
                "-c",
                "from dspy_toolkit.cli import main; main()",
                "mcp",
                "--allow-optimize",
                "--most-calls",
                str(MOST),
            ],
            env=environment(ROOT, tmp_path / "HOME", model.address)
            | {"DSPY_TOOLKIT_HOME": str(tmp_path / "home"), "DSPY_TOOLKIT_PROJECTS": json.dumps(known)},
            cwd=ROOT,
        )

        async def run() -> None:
            async with Client(server, read_timeout_seconds=240) as client:

                async def call(tool: str, **arguments: Any) -> Any:
                    answer = await client.call_tool(tool, arguments)
                    if answer.is_error:
                        return answer.content[0].text
                    found = answer.structured_content
                    return found["result"] if set(found) == {"result"} else found

                assert await call("list_runs") == []
                job = await call("optimize", project="triage", lm_calls=60, optimizer="labelled")
                assert job["lm_calls_left"] == MOST - 60 - job["calls_beside"] < MOST - 60
                end = time.monotonic() + 300
                while (job := await call("optimization_status", job_id=job["id"]))["state"] == "running":
                    assert time.monotonic() < end, job["said"]
                    await asyncio.sleep(0.5)
                assert job["state"] == "done", job["said"]
                assert "promoted" in job["said"]
                # What was charged is at least what the model was asked.
                assert 60 < len(model.received) <= 60 + job["calls_beside"]

                (recorded,) = await call("list_runs", project="triage")
                assert (recorded["outcome"], recorded["winner"]) == ("promoted", "labelled")
                costs = await call("read_costs", run_id=recorded["run_id"])
                assert 0 < costs["compile_lm_calls"] <= 60
                report = await call("read_report", project="triage", run_id=recorded["run_id"])
                assert "triage" in report and "labelled" in report
                assert [each["version"] for each in await call("list_champions", project="triage")] == [2, 1]

                left = MOST - 60 - job["calls_beside"]
                refused = await call("optimize", project="triage", lm_calls=left + 1)
                assert f"{left} are left of what this server may spend" in refused

        asyncio.run(run())
