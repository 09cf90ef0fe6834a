"""What each optimizer brings on eight tasks, what racing or choosing one brings, and what all of it costs.

    python -m benchmarks.optimizers [--tasks NAME …] [--systems NAME …] [--seeds 0 1 2 …] [--budget light]
                                    [--home FOLDER] [--json PATH] [--markdown PATH]

The model is the one that the settings name, by default the embedded one. The home is a temporary folder, so that no
project's ledger, versions or runs are touched; with `--home` it stays, and a run that was cut off goes on there. The
JSON, by default `optimizers.json` in the home, is written after every system, and Ctrl-C leaves what was measured.
Three seeds with the light budget take many hours on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.optimizers.clock import Clock
from benchmarks.optimizers.rows import SCRIPTED, SYSTEMS, Kept, Row
from benchmarks.optimizers.tasks import GYM, NAMES
from dspy_toolkit.durable import write_file


def run(arguments: argparse.Namespace, home: Path, rows: list[Row]) -> None:
    """Measure everything that was asked for into `rows`, and write them as they come."""
    from benchmarks.optimizers.measuring import measure, with_seed
    from benchmarks.optimizers.scripted import SCRIPTED_SYSTEMS, measure_scripted
    from benchmarks.optimizers.tasks import find_task
    from dspy_toolkit.optimizers import find_budget
    from dspy_toolkit.settings import load_settings

    find_budget(arguments.budget)  # a wrong one is refused before anything is spent
    settings, kept, machine = load_settings(home=home), Kept(home / "optimizers.jsonl"), describe()
    each = [len(SCRIPTED_SYSTEMS) if name == SCRIPTED else len(arguments.systems) for name in arguments.tasks]
    clock = Clock(len(arguments.seeds) * sum(each))
    for seed in arguments.seeds:
        seeded = with_seed(settings, seed)
        for name in arguments.tasks:
            if name == SCRIPTED:
                batches = measure_scripted(seeded, arguments.budget, kept, clock.say)
            else:
                batches = measure(find_task(name), seeded, arguments.budget, arguments.systems, kept, clock.say)
            for batch in batches:
                rows += batch.rows
                if batch.system:
                    clock.done(batch.rows, batch.measured)
                save(arguments.json or home / "optimizers.json", arguments.budget, rows, machine)


def save(path: Path, budget: str, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Write the rows so far, as a whole or not at all."""
    report = {"benchmark": "optimizers", "machine": machine, "results": {"budget": budget, "rows": list(rows)}}
    write_file(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())


def possible(names: Sequence[str]) -> list[str]:
    """The tasks that can run here; those that cannot are named, with the command that helps."""
    from benchmarks.optimizers.tasks.gym import missing

    reason = missing() if set(names) & set(GYM) else None
    if reason is None:
        return list(names)
    print(f"Left out: {', '.join(name for name in names if name in GYM)}. {reason}", file=sys.stderr)
    return [name for name in names if name not in GYM]


def main() -> int:
    """Measure, print and write; the exit code is 130 after Ctrl-C, and 1 where no task can run."""
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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the rows and searches")
    parser.add_argument(
        "--budget", default="light", help="of each system: light, medium, heavy, or LM calls such as 400"
    )
    parser.add_argument("--home", type=Path, help="keep everything there; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--markdown", type=Path, help="also write the tables there, as the documentation has them")
    arguments = parser.parse_args()
    arguments.tasks = possible(arguments.tasks)
    if not arguments.tasks:
        return 1

    from rich.console import Console

    from benchmarks.optimizers.report import markdown, tables

    # A candidate that is left out is a number of this table, not news for the terminal.
    logging.getLogger("dspy_toolkit").setLevel(logging.ERROR)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as folder:
        home = (arguments.home or Path(folder)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        interrupted = False
        try:
            run(arguments, home, rows)
        except KeyboardInterrupt:
            interrupted = True
            print(
                "Interrupted. What was through follows; started again with the same --home, it goes on.",
                file=sys.stderr,
            )
    console = Console(width=None if sys.stdout.isatty() else 170)
    for table in tables(rows):
        console.print(table)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows), encoding="utf-8")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
