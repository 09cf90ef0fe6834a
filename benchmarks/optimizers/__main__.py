"""What each optimizer brings on five tasks, what racing or choosing one brings, and what all of it costs.

    python -m benchmarks.optimizers [--tasks NAME …] [--systems NAME …] [--seeds 0 …] [--budget light]
                                    [--home FOLDER] [--json PATH] [--markdown PATH]

The model is the one that the settings name, by default the embedded one. The home is a temporary folder, so that no project's
ledger, versions or runs are touched; with `--home` it stays, and a run that was cut off goes on there. The JSON is written
after every task. One seed with the light budget takes more than an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import write
from benchmarks.optimizers.rows import SCRIPTED, SYSTEMS, Kept, Row
from benchmarks.optimizers.tasks import NAMES


def run(arguments: argparse.Namespace, home: Path) -> list[Row]:
    """Measure everything that was asked for; rows so far are in the JSON at any time."""
    from benchmarks.optimizers.measuring import measure, with_seed
    from benchmarks.optimizers.scripted import measure_scripted
    from benchmarks.optimizers.tasks import find_task
    from dspy_toolkit.optimizers import find_budget
    from dspy_toolkit.settings import load_settings

    find_budget(arguments.budget)  # a wrong one is refused before anything is spent
    settings, kept = load_settings(home=home), Kept(home / "optimizers.jsonl")
    began = time.monotonic()
    rows: list[Row] = []

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    for seed in arguments.seeds:
        seeded = with_seed(settings, seed)
        for name in arguments.tasks:
            if name == SCRIPTED:
                batches = measure_scripted(seeded, arguments.budget, kept, say)
            else:
                batches = measure(find_task(name), seeded, arguments.budget, arguments.systems, kept, say)
            for batch in batches:
                rows += batch
            write(arguments.json, "optimizers", {"budget": arguments.budget, "rows": rows})
    return rows


def main() -> None:
    """Measure, print and write."""
    known = (*NAMES, SCRIPTED)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", default=known, choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument(
        "--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS, metavar="NAME", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of the searches")
    parser.add_argument(
        "--budget", default="light", help="of each system: light, medium, heavy, or LM calls such as 400"
    )
    parser.add_argument("--home", type=Path, help="keep everything there; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--markdown", type=Path, help="also write the tables there, as the documentation has them")
    arguments = parser.parse_args()

    from rich.console import Console

    from benchmarks.optimizers.report import markdown, tables

    # A candidate that is left out is a number of this table, not news for the terminal.
    logging.getLogger("dspy_toolkit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as folder:
        rows = run(arguments, (arguments.home or Path(folder)).resolve())
    console = Console(width=None if sys.stdout.isatty() else 170)
    for table in tables(rows):
        console.print(table)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
