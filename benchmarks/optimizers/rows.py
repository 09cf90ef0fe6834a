"""The measured numbers: one row each, with the names that rows go by, and a file that keeps them as they come.

A run that was cut off, and is started again with the same home, goes on: one JSON line for each system of a task stands under a
key of all that its numbers come from. Measuring it again from the cache of replies would give the same scores, and other
seconds and physical calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from dspy_toolkit.settings import OptimizerName
from dspy_toolkit.store import digest

Row = dict[str, Any]
"""task, seed, system, measure, value, unit, note."""

JOINT = ("race", "auto")
"""What lets several of them into one pool."""
ALONE = tuple(name for name in get_args(OptimizerName) if name not in JOINT)
"""The optimizers, each by itself."""
SYSTEMS = (*ALONE, *JOINT)
BASELINE = "baseline"
PROFILE = "profile"
CLASSICAL = "classical"
"""What does without a language model; see `classical`."""
SCRIPTED = "scripted"
"""The task of GEPA between scripted models; see `scripted`."""


def value_of(rows: Sequence[Row], task: str, seed: int, system: str, measure: str) -> float | None:
    """One number, or None where it was not measured."""
    wanted = (task, seed, system, measure)
    return next((r["value"] for r in rows if (r["task"], r["seed"], r["system"], r["measure"]) == wanted), None)


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks in the order measured, without the scripted one."""
    return [name for name in dict.fromkeys(row["task"] for row in rows) if name != SCRIPTED]


def seeds_of(rows: Sequence[Row], task: str) -> list[int]:
    """The seeds of a task, in the order measured."""
    return list(dict.fromkeys(row["seed"] for row in rows if row["task"] == task))


class Kept:
    """The measurements of one home."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the file; it need not exist."""
        self._path = path
        self._found: dict[str, list[Row]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # the last line may have been cut off
                    entry = json.loads(line)
                    self._found[entry["key"]] = entry["rows"]

    def find(self, *parts: Any) -> list[Row] | None:
        """The rows that were kept under `parts`, or None."""
        return self._found.get(digest(*parts))

    def keep(self, rows: list[Row], *parts: Any) -> None:
        """Write `rows` under `parts`."""
        key = digest(*parts)
        self._found[key] = rows
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"rows": rows, "key": key}, ensure_ascii=False) + "\n")
