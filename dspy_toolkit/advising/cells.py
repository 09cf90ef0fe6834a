"""Measuring a landscape: what really happens when configurations are run, cell by cell.

A cell is one context (what somebody has: the data, the budget) with one seed. All configurations are run in it on the same
data and the same starting weights, so that their differences are paired, in a process of its own. A finished cell is a file
in the home, named by its contents and by the code that measured it; asked for again, it is read. A killed grid therefore goes
on where it was.

Covered: running cells, keeping them, gathering them into one table. Not covered: in which order and how often they are tried
(`flows.measure_landscape`), what a project runs in a cell (its `measure.py`), what is learnt from the table (`landscape`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import MeasurementFailed
from dspy_toolkit.store import Frozen

Value = str | float | int | bool
"""What a context, a configuration or an outcome is made of."""

Frame: TypeAlias = Any
"""A `pandas.DataFrame`: pandas' own types do not follow a selection of rows and columns."""

CELL_SECONDS = 1_800.0
"""The longest that a cell may take on a busy machine."""


class Cell(Frozen):
    """One context with one seed, and the configurations that are run in it."""

    project: str
    measure: str
    """`module:function`; the function is given context, configurations and seed, and returns one dictionary for each run."""
    family: str
    """Contexts of one family are never on both sides of a split."""
    context: Mapping[str, Value]
    configurations: tuple[Mapping[str, Value], ...] = Field(min_length=1)
    seed: int = Field(ge=0)

    @property
    def key(self) -> str:
        """A hash of the cell and of the code that measures it; comments, docstrings and layout of the code do not count."""
        text = json.dumps([self.model_dump(mode="json"), _code_of(self.measure.partition(":")[0])], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def __str__(self) -> str:
        return f"{self.project} {self.family} {' '.join(map(str, self.context.values()))} seed {self.seed}"


def _code_of(module: str) -> str:
    found = find_spec(module)
    if found is None or found.origin is None:
        raise MeasurementFailed(f"{module} is not there, and would measure the cell. Install the package that has it.")
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(value=0)  # a docstring
    return ast.unparse(tree)


def cell_file(cell: Cell, folder: Path) -> Path:
    """Where the cell's rows are, or would be."""
    return folder / cell.project / f"{cell.key}.json"


def measure_cell(cell: Cell, folder: Path, threads: int = 1) -> list[dict[str, Any]]:
    """The cell's rows: read where it was measured before, else measured in a process of its own and kept.

    Args:
        cell: what to measure.
        folder: the finished cells of all projects.
        threads: of the linear algebra; one, so that CPU seconds can be compared.

    Raises:
        MeasurementFailed: the process ended without a result; what it said last is in the message. Another try may succeed.
    """
    place = cell_file(cell, folder)
    if place.is_file():
        return json.loads(place.read_text(encoding="utf-8"))["rows"]
    import os

    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    command = [sys.executable, "-m", "dspy_toolkit.advising.child", cell.measure]
    try:
        ended = subprocess.run(
            command,
            input=cell.model_dump_json(),
            capture_output=True,
            text=True,
            env=environment,
            timeout=CELL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(
            f"{cell}: not finished after {CELL_SECONDS:.0f} s. Run the same command again."
        ) from error
    if ended.returncode != 0:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MeasurementFailed(
            f"{cell}: its process ended with {ended.returncode}: {said}. Run the same command again."
        )
    found = json.loads(ended.stdout.splitlines()[-1])
    shared = {"family": cell.family, **cell.context, "seed": cell.seed}
    cost = {name: found[name] for name in ("cell_cpu_seconds", "cell_wall_seconds", "peak_mb")}
    rows = [shared | dict(row) | cost for row in found["rows"]]
    write_file(place, json.dumps({"cell": str(cell), "versions": found["versions"], "rows": rows}).encode())
    return rows


def gather(cells: Iterable[Cell], folder: Path) -> Frame:
    """One table of all finished cells; a cell that is not measured yet is left out."""
    import pandas as pd

    rows = [
        row
        for cell in cells
        if (place := cell_file(cell, folder)).is_file()
        for row in json.loads(place.read_text(encoding="utf-8"))["rows"]
    ]
    return pd.DataFrame(rows)
