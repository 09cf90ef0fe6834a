"""Fields while they grow: the events of a stream, by real requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving, wait_for

STEPS = '''
import dspy
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project


class Steps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.plan = dspy.Predict("text -> outline")
        self.write = dspy.Predict("text, outline -> answer, length: int")

    async def aforward(self, text):
        outline = (await self.plan.acall(text=text)).outline
        for _ in range(2):
            said = await self.write.acall(text=text, outline=outline)
        return said

    def forward(self, text):
        return self.write(text=text, outline=self.plan(text=text).outline)


class Sync(dspy.Module):
    """Without an aforward."""

    def __init__(self):
        super().__init__()
        self.write = dspy.Predict("text -> answer")

    def forward(self, text):
        self.write(text=text + " first")
        return self.write(text=text + " second")


class Many(Sync):
    """Asks in threads of DSPy's."""

    def forward(self, text):
        asked = [(self.write, dspy.Example(text=f"{text} {n}").with_inputs("text")) for n in range(3)]
        return dspy.Parallel(num_threads=3, disable_progress_bar=True)(asked)[0]


def project_of(name, made):
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("answer",))
    return Project(name=name, summary="Write", program=made, metric=exact_match, dataset=spec)


steps, sync, many = project_of("steps", Steps), project_of("sync", Sync), project_of("many", Many)
'''


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.py"
    path.write_text(STEPS)
    return path


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def texts(found: list[tuple[str, Any]]) -> dict[tuple[str, str], str]:
    joined: dict[tuple[str, str], str] = {}
    for name, data in found:
        if name == "field":
            key = data["predictor"], data["field"]
            joined[key] = joined.get(key, "") + data["text"]
    return joined


def test_the_fields_of_all_steps_grow_and_the_prediction_ends_the_stream(promoted: Settings, steps: Path) -> None:
    replies = [{"outline": "one two three"}, *[{"answer": "a long answer of words", "length": 5}] * 2]
    settings, _ = fake(promoted, replies, seconds_per_token=0.01)
    settings = serving(settings, programs=(f"{steps}:steps",))
    with running(settings) as server, server.http.stream(
        "POST", "/v1/programs/steps/stream", json={"text": "hello"}
    ) as response:  # fmt: skip
        found = list(events(response))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert found[0] == ("start", {"program": "steps", "version": None, "model": settings.lm.model})
    said = texts(found)
    assert said["plan", "outline"] == "one two three"
    # The second run of `write` is answered by the cache: one run's chunks, and the prediction counts.
    assert said["write", "answer"] == "a long answer of words" and said["write", "length"] == "5"
    assert sum(name == "field" for name, _ in found) > 6
    assert found[-1][0] == "prediction"
    assert found[-1][1]["prediction"] == {"answer": "a long answer of words", "length": 5}


def test_a_cached_reply_has_its_fields_too(promoted: Settings) -> None:
    settings, _ = fake(promoted, [{"label": "person"}])
    with running(settings) as server:
        for cached in (False, True):
            with server.http.stream("POST", "/v1/programs/questions/stream", json={"text": "Who?"}) as response:
                found = list(events(response))
            assert texts(found) == {("self", "label"): "person"}
            assert found[-1][1]["cached"] is cached and found[-1][1]["prediction"] == {"label": "person"}


def test_a_program_without_aforward_runs_in_a_thread(promoted: Settings, steps: Path) -> None:
    settings, engine = fake(promoted, lambda request: {"answer": request.messages[-1].content.split()[-1]})
    settings = serving(settings, programs=(f"{steps}:sync",))
    with running(settings) as server:
        assert server.ask("sync", text="hello").json()["prediction"] == {"answer": "second"}
        with server.http.stream("POST", "/v1/programs/sync/stream", json={"text": "hi"}) as response:
            found = list(events(response))
    assert found[-1][1]["prediction"] == {"answer": "second"} and texts(found)["write", "answer"]
    assert len(engine.requests) == 4


def long_unless_warm(request: Any) -> dict[str, str]:
    """A reply of some seconds; what imports whatever the first request needs is answered soon."""
    return {"answer": "word" if "warm" in request.messages[-1].content else "word" + " word" * 99}


def test_who_goes_away_stops_the_tokens(promoted: Settings, steps: Path) -> None:
    """At several points, on JSON and on streams, of a program that runs in a thread."""
    settings, engine = fake(promoted, long_unless_warm, seconds_per_token=0.04)
    settings = serving(settings, programs=("questions", f"{steps}:sync"), threads=2)

    async def leave(port: int, path: str, wait: float | None) -> None:
        """Ask, and go away after some seconds; None: once the first token is on its way."""
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"text": f"{path} {wait}"}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        await asyncio.sleep(wait or 0)
        async with asyncio.timeout(15):
            while wait is None and not engine.stats().active:
                await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()

    with running(settings) as server:
        assert server.ask("sync", text="warm").status_code == 200
        before = engine.stats()
        for path in ("/v1/programs/sync/predict", "/v1/programs/sync/stream"):
            for wait in (0.0, 0.1, None):
                asyncio.run(leave(server.port, path, wait))
                back = server.back
                wait_for(lambda back=back: back.admission.active == back.admission.waiting == 0)
                wait_for(lambda: engine.stats().active == engine.stats().queued == 0, 2)
        found = engine.stats()
        assert server.http.get("/healthz").status_code == 200
    assert (found.finished, found.failed) == (before.finished, 0)
    assert 2 <= found.cancelled <= 6, "one call each at most: the second is refused"
    assert found.cancelled == found.requests - before.requests


def test_what_runs_in_threads_ends_at_the_deadline(promoted: Settings, steps: Path) -> None:
    """Of a program without an `aforward`, its own threads included."""
    settings, engine = fake(promoted, long_unless_warm, seconds_per_token=0.04)
    settings = serving(settings, programs=(f"{steps}:sync", f"{steps}:many"), threads=2, fall_back_on=())
    with running(settings) as server:
        assert server.ask("sync", text="warm").status_code == 200
        finished = engine.stats().finished
        for name, calls in (("sync", 1), ("many", 3)):
            before = engine.stats()
            said = server.ask(name, text="hello", headers={"X-Deadline-Seconds": "1.5"})
            assert (said.status_code, said.json()["error"]["code"]) == (504, "deadline_exceeded")
            wait_for(lambda: engine.stats().active == engine.stats().queued == 0, 2)
            after = engine.stats()
            assert after.cancelled - before.cancelled == after.requests - before.requests == calls
    assert engine.stats().finished == finished


def test_who_goes_away_from_an_async_program_frees_its_row_at_once(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: "word " * 400, seconds_per_token=0.05, check_grammar=False)
    with running(settings) as server:
        for path in ("predict", "stream"):
            with pytest.raises(httpx.ReadTimeout), server.http.stream(
                "POST", f"/v1/programs/questions/{path}", json={"text": path}, timeout=0.4
            ) as response:  # fmt: skip
                response.read()
            wait_for(lambda: engine.stats().active == engine.stats().queued == 0, 5)
    assert engine.stats().cancelled == 2 and engine.stats().finished == 0


def test_two_streams_of_one_program_do_not_mix(promoted: Settings, steps: Path) -> None:
    def answer(request: Any) -> dict[str, Any]:
        who = "left" if "left" in request.messages[-1].content else "right"
        asked = request.messages[-1].content
        return {"answer": f"{who} " * 8, "length": 1} if "## outline ##" in asked else {"outline": f"{who} " * 5}

    settings, _ = fake(promoted, answer, seconds_per_token=0.01)
    settings = serving(settings, programs=(f"{steps}:steps",))

    async def one(address: str, who: str) -> list[tuple[str, Any]]:
        async with httpx.AsyncClient(base_url=address, timeout=20) as http:
            said = await http.post("/v1/programs/steps/stream", json={"text": who})
            return list(events(said))

    async def both(address: str) -> list[list[tuple[str, Any]]]:
        return await asyncio.gather(one(address, "left"), one(address, "right"))

    with running(settings) as server:
        for who, found in zip(("left", "right"), asyncio.run(both(server.address)), strict=True):
            assert found[-1][1]["prediction"]["answer"].split() == [who] * 8
            assert set(" ".join(texts(found).values()).split()) <= {who, "1"}


def test_an_error_in_a_stream_is_its_last_event(promoted: Settings) -> None:
    settings, _ = fake(promoted, [ValueError("secret details")])
    with running(settings) as server, server.http.stream(
        "POST", "/v1/programs/questions/stream", json={"text": "Who?"}
    ) as response:  # fmt: skip
        found = list(events(response))
    assert found[-1][0] == "error" and found[-1][1]["code"] in ("model_failed", "program_failed")
    assert "secret" not in json.dumps(found)
