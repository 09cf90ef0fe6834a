"""One system in a process of its own, over all its workloads: nothing of one system reaches another.

    python -m benchmarks.lm.worker ORDER.json RESULT.jsonl

Started by `benchmarks.lm`. Rows are written as they come, so that a system which dies has given what it had.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lm.asking import Found, Setting
from benchmarks.lm.bursts import at_full_width, rate
from benchmarks.lm.compiling import compilation
from benchmarks.lm.floor import Shape
from benchmarks.lm.peers import Place
from benchmarks.lm.streaming import first_token
from benchmarks.lm.systems import start
from benchmarks.lm.workloads import find_workload
from benchmarks.throughput import Rates

MEASURES: dict[str, Callable[..., Iterator[Found]]] = {
    "burst": rate,
    "width": at_full_width,
    "stream": first_token,
    "compile": compilation,
}


def read_order(order: dict[str, Any]) -> Setting:
    """What `order_for` of the main module wrote."""
    place = {name: Path(value) if name in ("home", "folder", "gguf", "log") and value else value
             for name, value in order["place"].items()}  # fmt: skip
    return Setting(
        name=order["system"],
        place=Place(**place),
        rates=Rates(**order["rates"]),
        shape=Shape(**order["shape"]) if order["shape"] else None,
        train=order["train"],
        val=order["val"],
        demos=order["demos"],
        scale=order["scale"],
    )


def work(order: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Measure what is ordered, handing each row to `write`."""
    setting = read_order(order)
    system = start(setting.name, setting.place)
    try:
        for name in order["workloads"]:
            workload = find_workload(name)
            for way in workload.ways:
                print(f"  {setting.name}: {workload.title}, {way}", file=sys.stderr, flush=True)
                row = {"workload": name, "way": way, "system": setting.name}
                try:
                    for found in MEASURES[workload.measure](system, workload, way, setting):
                        write(row | found._asdict())
                except Exception as error:  # isolation boundary: one workload of one system
                    logging.getLogger(__name__).exception("%s, %s, %s", setting.name, name, way)
                    write(row | Found("failed", None, "", f"{type(error).__name__}: {error}"[:300])._asdict())
    finally:
        system.close()


def main() -> None:
    """Read the order, write the rows."""
    # A reply that max_tokens cuts is counted, and is expected of systems without a grammar.
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with Path(sys.argv[2]).open("a", encoding="utf-8") as result:

        def write(row: dict[str, Any]) -> None:
            result.write(json.dumps(row, ensure_ascii=False) + "\n")
            result.flush()

        work(order, write)


if __name__ == "__main__":
    main()
