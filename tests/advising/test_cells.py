"""A cell is measured once, in a process of its own; what fails says so and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.advising.cells import Cell, cell_file, gather, measure_cell
from dspy_toolkit.errors import MeasurementFailed

MEASURE = '''
import os, sys

def measure(context, configurations, seed):
    """Rows, and a word on stdout that is no result."""
    print("a library prints")
    if context.get("kill"):
        os._exit(3)
    if context.get("fault"):
        raise ValueError("the data are gone")
    return [dict(each) | {"score": each["rate"] * seed, "process": os.getpid()} for each in configurations]
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "measured_here.py").write_text(MEASURE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[2]}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "measured_here:measure"


def make_cell(module: str, **context: str) -> Cell:
    return Cell(
        project="p",
        measure=module,
        family="f",
        context={"kind": "easy"} | context,
        configurations=({"rate": 2.0},),
        seed=3,
    )


def test_a_cell_is_measured_once_in_a_process_of_its_own(module: str, tmp_path: Path) -> None:
    import os

    cell, folder = make_cell(module), tmp_path / "cells"
    [row] = measure_cell(cell, folder)
    assert (row["family"], row["kind"], row["seed"], row["score"]) == ("f", "easy", 3, 6.0)
    assert row["process"] != os.getpid()
    assert row["cell_cpu_seconds"] > 0 and row["peak_mb"] > 1
    assert measure_cell(cell, folder) == [row], "the same process's rows: it was not measured again"
    assert gather([cell, make_cell(module, kind="hard")], folder).to_dict("records") == [row]


@pytest.mark.parametrize(("fault", "said"), [("kill", "ended with 3"), ("fault", "ValueError: the data are gone")])
def test_a_failure_says_what_was_said_last_and_may_be_tried_again(
    module: str, tmp_path: Path, fault: str, said: str
) -> None:
    cell, folder = make_cell(module, **{fault: "yes"}), tmp_path / "cells"
    with pytest.raises(MeasurementFailed, match=said) as raised:
        measure_cell(cell, folder)
    assert raised.value.retryable
    assert not cell_file(cell, folder).exists()


def test_comments_keep_a_cell_and_code_renews_it(module: str, tmp_path: Path) -> None:
    import importlib

    cell, before = make_cell(module), make_cell(module).key
    (tmp_path / "measured_here.py").write_text("# a comment\n" + MEASURE.replace("Rows, and", "Rows and"))
    importlib.invalidate_caches()
    assert cell.key == before
    (tmp_path / "measured_here.py").write_text(MEASURE.replace("* seed", "+ seed"))
    assert cell.key != before
