"""The benchmark of levers on a fake model: what a cell holds, that it goes on where it was cut off, and the picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.optimizers.levers import LEVERS, Cell, _of_one_size, draw, line
from benchmarks.optimizers.rows import Kept
from dspy_toolkit.optimizers.generators.catalog import GENERATORS
from dspy_toolkit.settings import Settings
from tests.optimizers.benches import Bench
from tests.optimizers.toys import by_demos


def test_every_lever_is_made_of_generators() -> None:
    assert {name for names in LEVERS.values() for name in names} <= set(GENERATORS)


def test_cells_are_measured_once_and_printed_again(home: Settings, tmp_path: Path) -> None:
    bench = Bench(home, tmp_path / "project")
    bench.toy.knows = by_demos
    _, dataset, _ = bench.begin()

    def run() -> list[Cell]:
        kept = Kept(tmp_path / "levers.jsonl")
        return list(_of_one_size(bench.context(), dataset, 55, ["knn", "finetune"], 150, kept, lambda what: None))

    first = run()
    assert [cell["lever"] for cell in first] == ["baseline", "classical", "knn", "finetune"]
    knn = first[2]
    assert knn["mean"] == 1.0 > first[0]["mean"] and 0 < knn["calls"] <= 150 and knn["tokens"] > 0
    assert first[3]["mean"] is None and "trained" in first[3]["note"], "the fake cannot be trained"
    assert run()[2] == knn
    assert "100.0%" in line(knn) and "–" in line(first[3])
    picture = tmp_path / "levers.png"
    draw(first, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
