"""A client that closes the connection, at each point of its request: nothing goes on for it, and nobody else loses anything.

Covered: asking, streaming, a batch and an ensemble, over a fake engine, which works on one request at a time. Not covered: programs
that run in a thread (`test_streaming`), many clients that go away at random moments (`test_soak`).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from tests.serving.conftest import Running, fake, running, serving, wait_for

PAIR = '''
import asyncio
import dspy
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project


class Pair(dspy.Module):
    """Two predictors, and a long time between them."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("text -> label")
        self.second = dspy.Predict("text, before -> label")

    async def aforward(self, text):
        before = (await self.first.acall(text=text)).label
        await asyncio.sleep(60)
        return await self.second.acall(text=text, before=before)

    def forward(self, text):
        return self.first(text=text)


spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
pair = Project(name="pair", summary="Write", program=Pair, metric=exact_match, dataset=spec)
'''
ROWS = {"rows": [{"text": f"row {number}"} for number in range(3)]}


class Client:
    """A connection that sends one request, or the first part of it."""

    def __init__(self, port: int, path: str, body: dict[str, Any], *, whole: bool = True) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode())
        self._socket.sendall(data if whole else data[: len(data) // 2])
        self._socket.setblocking(False)
        self._heard = b""

    def heard(self, text: str) -> bool:
        """Whether this has arrived."""
        with contextlib.suppress(BlockingIOError):
            self._heard += self._socket.recv(65536)
        return text.encode() in self._heard

    def close(self) -> None:
        self._socket.close()


Reached = Callable[[Running, FakeEngine, Client], bool]


@dataclass(frozen=True)
class Point:
    """Where a client goes away, and what the engine has to do with it."""

    reached: Reached
    routes: tuple[str, ...] = ("predict", "stream")
    program: str = "questions"
    body: dict[str, Any] = field(default_factory=lambda: {"text": "Who?"})
    whole: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    held: bool = False
    """Whether another client has the engine meanwhile."""
    asked: int = 0
    """Requests that the engine got."""
    cancelled: int = 0
    finished: int = 0


def worked_on(active: int, waiting: int = 0) -> Reached:
    """So many requests are worked on, and wait to be."""
    return lambda server, engine, client: (
        (server.back.admission.active, server.back.admission.waiting) == (active, waiting)
        and engine.stats().active == 1
    )


def in_the_engine(queued: int) -> Reached:
    """It writes one reply, and so many wait."""
    return lambda server, engine, client: (engine.stats().active, engine.stats().queued) == (1, queued)


POINTS: dict[str, Point] = {
    "half a body": Point(
        lambda server, engine, client: len(server.server.server_state.tasks) == 1,
        routes=("predict", "stream", "predict/batch"),
        whole=False,
    ),
    "waiting in admission": Point(worked_on(1, 1), settings={"concurrency": 1}, held=True),
    "in the engine's queue": Point(in_the_engine(1), held=True, asked=1, cancelled=1),
    "in the middle of a field": Point(
        lambda server, engine, client: client.heard("event: field"), routes=("stream",), asked=1, cancelled=1
    ),
    "in the middle of a reply": Point(in_the_engine(0), routes=("predict",), asked=1, cancelled=1),
    "between two predictors": Point(
        lambda server, engine, client: engine.stats().finished == 1, program="pair", asked=1, finished=1
    ),
    "a batch, one row worked on": Point(
        worked_on(1, 2), ("predict/batch",), body=ROWS, settings={"concurrency": 1}, asked=1, cancelled=1
    ),
    "a batch, all rows in the engine": Point(in_the_engine(2), ("predict/batch",), body=ROWS, asked=3, cancelled=3),
    "an ensemble, both members in the engine": Point(in_the_engine(1), program="both", asked=2, cancelled=2),
}
CASES = [pytest.param(point, route, id=f"{name}, {route}") for name, point in POINTS.items() for route in point.routes]


@pytest.mark.parametrize(("point", "route"), CASES)
def test_who_goes_away(promoted: Settings, tmp_path: Path, point: Point, route: str) -> None:
    (tmp_path / "pair.py").write_text(PAIR)

    def reply(request: Any) -> dict[str, Any]:
        short = point.program == "pair"
        return {"label": "person" if short else "word " * 400}

    settings, engine = fake(promoted, reply, seconds_per_token=0.02, check_grammar=False)
    members = {"both": {"members": ["questions", "questions@1"], "rule": "majority"}}
    settings = serving(
        settings,
        programs=("questions", f"{tmp_path / 'pair.py'}:pair"),
        ensembles=members,
        fall_back_on=(),
        **point.settings,
    )
    with running(settings) as server:
        admission, tasks = server.back.admission, server.server.server_state.tasks
        holder = Client(server.port, "/v1/programs/questions/predict", {"text": "held"}) if point.held else None
        if holder is not None:
            wait_for(lambda: engine.stats().active == 1)
        client = Client(server.port, f"/v1/programs/{point.program}/{route}", point.body, whole=point.whole)
        wait_for(lambda: point.reached(server, engine, client))
        client.close()
        others = int(point.held)
        wait_for(lambda: (admission.active, admission.waiting, len(tasks)) == (others, 0, others))
        wait_for(lambda: (engine.stats().active, engine.stats().queued) == (others, 0))
        assert engine.stats().cancelled == point.cancelled and engine.stats().finished == point.finished
        if holder is not None:
            holder.close()
            wait_for(lambda: (admission.active, admission.waiting, len(tasks)) == (0, 0, 0))
            wait_for(lambda: engine.stats().cancelled == point.cancelled + 1)
        assert len(engine.requests) == point.asked + others, "nothing more was asked for it"
        assert server.http.get("/healthz").status_code == 200
