"""Seconds until the first piece of a streamed answer, while the other callers keep the system busy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Any

import dspy

from benchmarks.lm.asking import Caller, Found, Setting, rows_for
from benchmarks.lm.peers import System
from benchmarks.lm.workloads import Way, Workload, messages_of, signature_of
from benchmarks.throughput import THREADS

PROBES, PROBE_SECONDS = 5, 40
"""Streams that are timed, one after another; no further one begins after so many seconds."""
SETTLING_SECONDS = 30
"""How long the first answer of the load is waited for, before the streams begin."""


def first_token(system: System, workload: Workload, way: Way, setting: Setting) -> Iterator[Found]:
    """The median over PROBES streams."""
    if way == "dspy" and setting.name == "generate":
        yield Found("first_token", None, "s", "n/a: the handler does not stream")
        return
    rows = rows_for(workload, setting, 4 * THREADS)
    call = Caller(system, workload, way, f"{workload.name} {way}")
    call(rows[-1])
    first = _natively if way == "native" else _through_dspy
    waits: list[float] = []
    with _load(call, rows[PROBES:], system):
        began = time.monotonic()
        for row in rows[:PROBES]:
            waits.append(first(system, workload, call.program, row))
            if time.monotonic() - began > PROBE_SECONDS:
                break
    yield Found("first_token", median(waits), "s", f"median of {len(waits)}, {max(waits):.2f} s at most")


@contextmanager
def _load(call: Callable[[dict[str, str]], Any], rows: list[dict[str, str]], system: System) -> Iterator[None]:
    """Keep one caller less than all at work while the block runs; it begins when the first has had its answer."""
    over, begun = threading.Event(), threading.Event()

    def work(number: int) -> None:
        turn = number
        while not over.is_set():
            call(rows[turn % len(rows)])
            begun.set()
            turn += THREADS - 1

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS - 1)]
    for worker in workers:
        worker.start()
    begun.wait(SETTLING_SECONDS)
    try:
        yield
    finally:
        over.set()
        system.drop()
        for worker in workers:
            worker.join(60)


def _natively(system: System, workload: Workload, program: dspy.Module, row: dict[str, str]) -> float:
    messages = messages_of(program, row["request"])
    began = time.perf_counter()
    # Closed after the first piece: the rest of the answer would only keep the next stream waiting.
    with closing(system.stream(messages, workload.max_tokens, signature_of(program))) as pieces:
        next(pieces, None)
        return time.perf_counter() - began


def _through_dspy(system: System, workload: Workload, program: dspy.Module, row: dict[str, str]) -> float:
    lm, adapter = system.lm(workload.max_tokens)
    began = time.perf_counter()

    async def wait() -> float:
        first = None
        try:
            async for piece in dspy.streamify(program)(request=row["request"]):
                choices = getattr(piece, "choices", None)
                if first is None and choices and choices[0].delta.content:
                    first = time.perf_counter() - began
        except Exception:  # isolation boundary: an answer that max_tokens cut cannot be read, and need not be
            if first is None:
                raise
        return first or time.perf_counter() - began

    with dspy.context(lm=lm, adapter=adapter):
        return asyncio.run(wait())
