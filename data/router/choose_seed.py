"""Choose the split's seed of the router's dataset by counts alone: no program's answer is looked at.

    python data/router/choose_seed.py

Prints the smallest seed for which 240 rows are sealed and no class has more than three rows above or below its share in
any split. The project states that seed; run this again only for another dataset.
"""

from __future__ import annotations

from collections import Counter

from dspy_toolkit.datasets import SPLITS, read_rows
from dspy_toolkit.datasets.grouping import draw
from dspy_toolkit.datasets.table import row_hash
from dspy_toolkit.projects.router import project

SEALED = 240
SLACK = 3


def counts(seed: int, rows: list[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """(split, class) → rows, when every row is a group of its own."""
    return Counter((draw(seed, name, project.dataset.fractions), label) for name, label in rows)


def main() -> None:
    """Search from 0 upwards."""
    frame = read_rows(project.data_path)
    spec = project.dataset
    rows = [(row_hash({name: row[name] for name in spec.columns}), row["project"]) for row in frame.to_dict("records")]
    labels = sorted({label for _, label in rows})
    for seed in range(1_000_000):
        found = counts(seed, rows)
        totals = {split: sum(found[split, label] for label in labels) for split in SPLITS}
        even = all(abs(found[split, label] - totals[split] / len(labels)) <= SLACK for split in SPLITS for label in labels)
        if totals["sealed"] == SEALED and even:
            print(f"seed {seed}: {totals}, sealed by class {[found['sealed', label] for label in labels]}")
            return


if __name__ == "__main__":
    main()
