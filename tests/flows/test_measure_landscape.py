"""The flow that measures a landscape: a cell is run once, and the runs are one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.usefixtures("prefect_server")
def test_a_cell_is_measured_once_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_toolkit.advising import load_advisor
    from flows.measure_landscape import measure_landscape

    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(tmp_path / "home"))
    out = tmp_path / "runs.parquet"
    assert measure_landscape(project="federated", grid="tiny", out=str(out), limit=1) == str(out)
    first = pd.read_parquet(out)
    advisor = load_advisor("federated")
    assert len(first) == 2 * len(advisor.cells("tiny")[0].configurations)
    assert set(advisor.columns.configuration) <= set(first.columns)
    measure_landscape(project="federated", grid="tiny", out=str(out), limit=1)
    pd.testing.assert_frame_equal(pd.read_parquet(out), first)  # with its seconds: nothing was run again
