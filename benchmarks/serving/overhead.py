"""What serving adds to a cached reply: the application asked in the process, against `acall` of the same program beside it.

`asgi` has everything from the request's first byte of ASGI to the last of its reply: routing, keys, limits, validation, the race
with the client's leaving, falling back, the reply's JSON; it has not HTTP's parsing. `…_cpu` is the processor time of all threads of
the process, which a machine that is busy with other work does not lengthen.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

REQUEST = "Which rank should my adapter have?"


async def measure(rounds: int) -> dict[str, float]:
    """Milliseconds at p50: `acall`, `asgi`, and what the second adds; each also as processor time."""
    import dspy

    from benchmarks.serving.contenders import settings
    from dspy_toolkit.serving import create_app

    app = create_app(settings())
    async with app.router.lifespan_context(app):
        back = app.state.dspy_toolkit_serving
        live = back.service.entries["router"].standing.live
        body = json.dumps({"request": REQUEST}).encode()

        async def asgi() -> None:
            sent: list[dict[str, Any]] = []
            waiting = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> dict[str, Any]:
                if waiting:
                    return waiting.pop()
                await asyncio.Event().wait()
                raise AssertionError

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            path = "/v1/programs/router/predict"
            headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
            scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path}
            scope |= {"raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http", "app": app}
            await app({**scope, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}, receive, send)
            assert sent[0]["status"] == 200, sent

        async def acall() -> None:
            with live.connection.context(live.connection.lm.for_one_request()), dspy.context(trace=[]):
                await live.program.acall(request=REQUEST)

        times: dict[str, list[float]] = {"acall": [], "asgi": [], "acall_cpu": [], "asgi_cpu": []}
        for _ in range(3):
            await asgi()
        for _ in range(rounds):  # alternately, so that a busy machine is busy for both
            for name, ask in (("acall", acall), ("asgi", asgi)):
                seconds, busy = await _timed(ask)
                times[name].append(seconds)
                times[f"{name}_cpu"].append(busy)
    middle = {name: 1000 * statistics.median(found) for name, found in times.items()}
    added = {f"added{unit}": middle[f"asgi{unit}"] - middle[f"acall{unit}"] for unit in ("", "_cpu")}
    return middle | added


async def _timed(ask: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Seconds, and seconds of the processor."""
    began, busy = time.perf_counter(), time.process_time()
    await ask()
    return time.perf_counter() - began, time.process_time() - busy
