"""The contenders answer, on sizes that say nothing about speed."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from benchmarks.serving.contenders import guide
from dspy_toolkit.testing import fake_connection


@pytest.mark.anyio
async def test_the_guides_application_answers(tmp_path: Path) -> None:
    connection = fake_connection([{"project": "lora"}], tmp_path)
    transport = httpx.ASGITransport(guide())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        with connection.context():
            said = await http.post("/predict", json={"request": "Which rank?"})
    assert said.json() == {"status": "success", "data": {"project": "lora"}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
