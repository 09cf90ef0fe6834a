"""Measure a project's landscape: run its grid of configurations, cell by cell, and write the runs.

python -m flows.measure_landscape --project federated --grid tiny
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from prefect import flow

from flows.temporary_server import watch_run
from tasks.landscapes import measure_cell, write_runs


@flow(flow_run_name="measure the landscape of {project}", on_running=[watch_run])
def measure_landscape(
    project: str = "federated",
    grid: Literal["full", "tiny"] = "full",
    out: Annotated[str, Parameter(show_default=False)] = "",
    limit: int = 0,
) -> str:
    """Measure `project`'s grid and write one row a run, as Parquet. What was measured before is not measured again.

    Args:
        project: lora, diffusion, clip, federated, or an installed project with an advisor.
        grid: full (minutes to hours), or tiny.
        out: the Parquet file; HOME/landscapes/PROJECT/GRID.parquet by default.
        limit: stop after so many cells; 0 for all.
    """
    from dspy_toolkit.advising import load_advisor

    cells = load_advisor(project).cells(grid)
    cells = cells[:limit] if limit else cells
    for cell in cells:
        measure_cell(cell)
    return write_runs(cells, Path(out) if out else None, grid)


if __name__ == "__main__":
    from flows.terminal import run_at_terminal

    run_at_terminal(measure_landscape)
