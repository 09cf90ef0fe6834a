"""The embedded model, served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx

from dspy_toolkit.lm import Connection
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.registry import promote
from dspy_toolkit.settings import Settings
from tests.serving.conftest import running, serving


def test_the_embedded_model_answers_many_at_once_and_streams(
    home: Settings, save_questions: Callable[..., int], connection: Connection, engine: Engine
) -> None:
    promote(home, "questions", save_questions())
    settings = home.model_copy(update={"lm": home.lm.model_copy(update={"model": connection.model})})
    with running(serving(settings, deadline_seconds=200)) as server:

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.address, timeout=200) as http:
                path = "/v1/programs/questions/predict"
                asks = [http.post(path, json={"text": f"Who wrote volume {n}?"}) for n in range(4)]
                return await asyncio.gather(*asks)

        said = asyncio.run(many())
        streamed = httpx.post(
            f"{server.address}/v1/programs/questions/stream", json={"text": "How many are there?"}, timeout=200
        ).text
        metrics = server.http.get("/metrics").text
    assert [answer.status_code for answer in said] == [200] * 4, said[0].text
    for answer in said:
        found = answer.json()
        assert found["prediction"]["label"] in ("number", "person") and not found["cached"]
        assert found["timings"]["prefill_seconds"] > 0 and found["usage"]["prompt_tokens"] > 30
    assert "event: field" in streamed and "event: prediction" in streamed
    last = json.loads(streamed[streamed.rindex("data: ") :].removeprefix("data: "))
    assert last["timings"]["prefill_seconds"] > 0 and last["timings"]["decode_seconds"] > 0, last
    assert last["usage"]["prompt_tokens"] > 30 and not last["cached"]
    assert f'dspy_toolkit_lm_requests_total{{model="{engine.model}",outcome="finished"}}' in metrics
