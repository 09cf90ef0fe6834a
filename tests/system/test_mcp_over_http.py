"""The door for coding agents on a port of this machine, as a process of its own, with the SDK's own client."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspy_toolkit.settings import Settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(home: Settings, save_questions: Any) -> Iterator[str]:
    """Of a server over a home with one version."""
    save_questions("Be brief.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from dspy_toolkit.cli import main; main()", "mcp", "--http", str(port)]
    environment = os.environ | {"DSPY_TOOLKIT_HOME": str(home.path()), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        end = time.monotonic() + 600
        while server.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.terminate()
        server.wait(60)


def test_a_client_lists_and_reads(address: str) -> None:
    from mcp import Client

    async def run() -> tuple[set[str], Any]:
        async with Client(address, read_timeout_seconds=300) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            return tools, await client.call_tool("show_program", {"program": "questions@1"})

    tools, shown = asyncio.run(run())
    assert "show_program" in tools and "optimize" not in tools
    assert shown.structured_content["state"]["signature"]["instructions"] == "Be brief."


def test_a_page_of_another_site_is_not_let_in(address: str) -> None:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"Accept": "application/json, text/event-stream"}
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = httpx.post(address, json=asked, headers={**accepted, **headers}, timeout=60)
        assert answer.status_code in (403, 421), (headers, answer.status_code, answer.text)
