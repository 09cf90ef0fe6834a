"""Measuring a landscape: a task for each cell, tried again when its process failed, and one that writes the runs.

A cell's result is kept by its content in the home (`dspy_toolkit.advising.cells`), which other processes read as well; Prefect's
own cache would only hold it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from dspy_toolkit.advising import Cell
from dspy_toolkit.advising import cells as landscape_cells
from dspy_toolkit.display.progress import step
from dspy_toolkit.durable import write_file
from dspy_toolkit.settings import load_settings
from tasks.policy import RETRYING


@task(task_run_name="measure {cell}", cache_policy=NO_CACHE, **RETRYING)
def measure_cell(cell: Cell) -> int:
    """Run a cell's configurations, unless they were run before; the number of runs."""
    with step(f"measure {cell.project}"):
        return len(landscape_cells.measure_cell(cell, load_settings().path("landscapes")))


@task(task_run_name="write the runs", cache_policy=NO_CACHE, **RETRYING)
def write_runs(cells: Sequence[Cell], out: Path | None, grid: str) -> str:
    """Write the runs of all cells that are measured as one Parquet file; where it is."""
    import io

    settings = load_settings()
    frame = landscape_cells.gather(cells, settings.path("landscapes"))
    place = (out or settings.path("landscapes") / cells[0].project / f"{grid}.parquet").absolute()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    write_file(place, buffer.getvalue())
    seconds = frame.drop_duplicates(["family", "seed", "cell_cpu_seconds"])["cell_cpu_seconds"].sum()
    create_table_artifact(
        [{"project": cells[0].project, "cells": len(cells), "runs": len(frame), "CPU seconds": f"{seconds:.0f}"}],
        key="landscape",
        description=str(place),
    )
    print(f"{len(frame)} runs of {len(cells)} cells, {seconds:.0f} CPU seconds: {place}")
    return str(place)
