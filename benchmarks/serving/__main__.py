"""Serving against other ways of putting the same program behind HTTP, on this machine, in one run.

    python -m benchmarks.serving [--only NAME …] [--clients 32] [--requests 128] [--json PATH]

Each contender runs in a process of its own, one after another, and is asked by as many clients at once; every request is another
text, so that no cache answers. Of the percentiles each client's first request is left out: all begin at one moment, as no traffic
does. `model` is the share of the time in which the engine computes. `overhead` is what serving adds to a cached reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import write
from benchmarks.serving.contenders import NAMES

START_SECONDS = 600
PATHS = {"serve": "/v1/programs/router/predict", "mlflow": "/invocations"}


async def load(address: str, name: str, texts: list[str], clients: int) -> tuple[list[float], float, int]:
    """Seconds of each request but a client's first, seconds of all, and how many failed."""
    left, took, failed = list(reversed(texts)), [], 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal failed
        first = True
        while left:
            body: dict[str, Any] = {"request": left.pop()}
            body = {"dataframe_records": [body]} if name == "mlflow" else body
            began = time.perf_counter()
            answer = await http.post(PATHS.get(name, "/predict"), json=body)
            if not first:
                took.append(time.perf_counter() - began)
            first = False
            failed += answer.status_code != 200

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=3600, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return took, time.perf_counter() - began, failed


def measure(name: str, clients: int, requests: int) -> dict[str, Any]:
    """Start one contender, warm it up, ask it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.serving.contenders", name, str(port), folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"LOGLEVEL": "WARNING"})
        try:
            _wait(address, process)
            asyncio.run(load(address, name, [f"{name}: warm up {uuid.uuid4().hex[:6]}" for _ in range(2)], 2))
            run = uuid.uuid4().hex[:6]  # the home keeps replies from one run of this command to the next
            texts = [f"{name} {run}: I want an adapter of rank {n} for my notes" for n in range(requests)]
            busy, computed = _busy(process), _computed(address, name)
            took, seconds, failed = asyncio.run(load(address, name, texts, clients))
            busy, computed = _busy(process) - busy, _computed(address, name) - computed
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    cuts = statistics.quantiles(took, n=100)
    return {
        "requests_a_second": requests / seconds,
        "p50": cuts[49],
        "p99": cuts[98],
        "processor_seconds": busy / requests,
        "failed": failed,
        "model": computed / seconds,
    }


def _computed(address: str, name: str) -> float:
    """Seconds that the engine has spent in the model so far; 0 for a contender that does not say."""
    if name != "serve":
        return 0.0
    numbers = re.findall(
        r"^dspy_toolkit_lm_(?:prefill_)?model_seconds_total\S* (\S+)", httpx.get(f"{address}/metrics").text, re.M
    )
    return sum(map(float, numbers))


def _busy(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of a process so far: a machine that is busy with other work lengthens them little."""
    spent = psutil.Process(process.pid).cpu_times()
    return spent.user + spent.system


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"It ended with {process.returncode} before it answered.")
        try:
            httpx.get(address, timeout=5)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"It did not answer within {START_SECONDS} s.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*NAMES, "overhead"], default=[*NAMES, "overhead"])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.only:
        if name == "overhead":
            from benchmarks.serving.overhead import measure as overhead

            found[name] = asyncio.run(overhead(200))
        else:
            found[name] = measure(name, given.clients, given.requests)
        print(name, json.dumps({key: round(value, 4) for key, value in found[name].items()}), flush=True)
    base = found.get("serve", {}).get("requests_a_second")
    print("\n| served by | requests a second | p50, s | p99, s | processor, s a request | model | failed | serve is |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, said in found.items():
        if "p50" in said:
            model = f"{said['model']:.0%}" if said["model"] else ""
            times = f"{base / said['requests_a_second']:.1f} ×" if base else ""
            print(
                f"| {name} | {said['requests_a_second']:.2f} | {said['p50']:.2f} | {said['p99']:.2f} | "
                f"{said['processor_seconds']:.3f} | {model} | {said['failed']} | {times} |"
            )
    load_now = [round(each, 1) for each in os.getloadavg()]
    print(f"\n{given.clients} clients, {given.requests} requests, load {load_now}")
    write(given.json, "serving", {**found, "clients": given.clients, "requests": given.requests, "load": load_now})


if __name__ == "__main__":
    main()
