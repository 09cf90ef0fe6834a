"""The made-up project can be optimized, and the two ways of it are measured, on sizes that say nothing about speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.orchestration import measure, write_project
from dspy_toolkit.datasets import read_rows


@pytest.mark.parametrize("rows", [7, 96, 1056])
def test_as_many_rows_as_asked_for_all_different(rows: int, tmp_path: Path) -> None:
    write_project(tmp_path, rows)
    texts = read_rows(tmp_path / "questions.csv")["text"]
    assert len(texts) == len(set(texts)) == rows


@pytest.mark.system
@pytest.mark.timeout(900)
def test_both_ways_come_to_one_end(tmp_path: Path) -> None:
    found = measure(tmp_path, 96, 0.0, 1)
    (library,), (flow,) = found["library"], found["flow"]
    assert library["outcome"] == flow["outcome"] == "promoted"
    # What several threads ask at once may be asked twice.
    assert flow["calls"] == pytest.approx(library["calls"], rel=0.05)
    assert found["ratio"] == flow["seconds"] / library["seconds"]
    assert flow["requests"] > 0 and flow["bytes"] > 0
    # A flow and its tasks begin and end, each of which Prefect keeps as an event.
    assert flow["events"] > 20
