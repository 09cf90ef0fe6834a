"""How long it takes until the library and its command are there.

    python -m benchmarks.imports [--runs 9] [--json PATH]

Each run is a process of its own, so nothing is imported already; the first run of each, which may read from a cold disk, is
not counted. "bare Python" is what an empty program takes here: the rest is the toolkit's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import write

COMMANDS = {
    "bare Python": [sys.executable, "-c", "pass"],
    "import dspy_toolkit": [sys.executable, "-c", "import dspy_toolkit"],
    "dspy-toolkit --help": [sys.executable, "-c", "from dspy_toolkit.cli import main; main(['--help'])"],
}


def measure(command: list[str], runs: int) -> list[float]:
    """Wall seconds of `runs` processes, one after the other, from start to end."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    results = {}
    for name, command in COMMANDS.items():
        seconds = measure(command, max(arguments.runs, 1))
        results[name] = {"min": min(seconds), "median": median(seconds), "runs": seconds}
        print(f"{name:<22} min {min(seconds):6.3f} s   median {median(seconds):6.3f} s   ({len(seconds)} runs)")
    write(arguments.json, "imports", results)


if __name__ == "__main__":
    main()
