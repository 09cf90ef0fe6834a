"""The demo flow twice in a fresh home: wall seconds and peak memory, first with nothing there, then from the caches.

    python -m benchmarks.demo [--json PATH] [--budget light]

Memory is the resident memory of the whole process tree (the flow and Prefect's temporary server), added up every fifth of a
second; pages that processes share count more than once, so it errs upwards.

The flow's own output goes to a file and is shown only when the flow fails: a fresh home has a fresh ledger, and the sealed
scores that a benchmark run produces are nobody's to choose by.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import write

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.2
OWN_PROFILE = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME")
"""Unset, so that Prefect's database is in the fresh home as well."""


def tree_bytes(process: psutil.Process) -> int:
    """Resident bytes of a process and all that it started; what ends meanwhile counts 0."""
    total = 0
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in members:
        try:
            total += member.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run(home: Path, budget: str) -> dict[str, float]:
    """Run the flow once; wall seconds and peak bytes. Ends the benchmark when the flow fails."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_PROFILE}
    environment["DSPY_TOOLKIT_HOME"] = str(home)
    command = [sys.executable, "-m", "flows.optimize_program", "--project", "router", "--budget", budget]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        began, peak = time.monotonic(), 0
        flow = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            watched = psutil.Process(flow.pid)
            while flow.poll() is None:
                peak = max(peak, tree_bytes(watched))
                time.sleep(SAMPLE_SECONDS)
        finally:
            if flow.poll() is None:  # the benchmark itself was interrupted
                flow.terminate()
                flow.wait()
        seconds = time.monotonic() - began
        if flow.returncode:
            output.seek(0)
            sys.exit(f"{output.read()}\nThe flow ended with code {flow.returncode} after {seconds:.0f} s.")
    return {"seconds": seconds, "peak_bytes": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budget", choices=("light", "medium", "heavy"), default="light")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as folder:
        for name in ("first", "second"):
            results[name] = found = run(Path(folder) / "home", arguments.budget)
            print(f"{name:<7} {found['seconds']:6.0f} s   peak {found['peak_bytes'] / 2**30:.2f} GB", flush=True)
    write(arguments.json, "demo", {"budget": arguments.budget, **results})


if __name__ == "__main__":
    main()
