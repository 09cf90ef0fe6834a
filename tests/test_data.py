"""The built-in datasets are what `data/README.md` says. No program's answer is looked at here."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from dspy_toolkit.datasets import SPLITS
from dspy_toolkit.datasets.grouping import draw
from dspy_toolkit.datasets.neighbors import Neighbors, comparable
from dspy_toolkit.datasets.table import row_hash
from dspy_toolkit.projects.router import project
from dspy_toolkit.projects.router.signatures import ProjectLabel

DATA = Path(__file__).resolve().parents[1] / "data"
REQUESTS = DATA / "router" / "requests.jsonl"
LABELS = set(get_args(ProjectLabel))
STYLES = {"terse", "rambling", "indirect", "misspelt", "goal", "technical"}


@cache
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]


@cache
def splits() -> list[str]:
    """The split of each row, as long as no two rows share a group."""
    spec = project.dataset
    return [draw(spec.seed, row_hash({name: row[name] for name in spec.columns}), spec.fractions) for row in rows()]


@cache
def readme() -> str:
    return (DATA / "README.md").read_text(encoding="utf-8")


def test_the_project_reads_this_file() -> None:
    assert project.data_path == REQUESTS


def test_every_row_has_the_four_keys_and_known_values() -> None:
    for number, row in enumerate(rows(), start=1):
        assert list(row) == ["request", "project", "style", "hard"], number
        assert row["project"] in LABELS, number
        assert row["style"] in STYLES, number
        assert row["request"] == row["request"].strip() != "", number
        assert row["hard"] is None or row["hard"].strip(), number


def test_there_are_enough_rows_and_the_classes_are_balanced() -> None:
    counts = Counter(row["project"] for row in rows())
    assert len(rows()) >= 720
    assert set(counts) == LABELS
    assert min(counts.values()) >= 120
    assert max(counts.values()) - min(counts.values()) <= 6


def test_every_style_occurs_in_every_class() -> None:
    counts = Counter((row["project"], row["style"]) for row in rows())
    assert len(counts) == len(LABELS) * len(STYLES)
    assert min(counts.values()) >= 12


def test_about_a_tenth_is_hard_in_every_class() -> None:
    hard = Counter(row["project"] for row in rows() if row["hard"])
    assert 0.08 <= hard.total() / len(rows()) <= 0.15
    assert set(hard) == LABELS
    assert min(hard.values()) >= 10


def test_no_two_requests_are_nearly_alike() -> None:
    index = Neighbors([comparable([row["request"]]) for row in rows()], threshold=0.5)
    pairs = [(row + 1, int(other) + 1) for row in range(len(rows())) for other in index.near(row)]
    assert pairs == [], "line numbers of near-duplicates"


def test_240_rows_are_sealed_and_every_class_is_in_every_split() -> None:
    assert Counter(splits()) == {"train": 337, "val": 191, "sealed": 240}
    classes = Counter(zip(splits(), (row["project"] for row in rows()), strict=True))
    assert len(classes) == len(SPLITS) * len(LABELS)
    assert min(classes.values()) >= 25


def test_the_readme_names_these_bytes() -> None:
    assert hashlib.sha256(REQUESTS.read_bytes()).hexdigest() in readme()


@pytest.mark.parametrize("key", ["project", "style"])
def test_the_readme_counts_these_rows(key: str) -> None:
    written = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) \|", readme(), re.MULTILINE))
    counts = Counter(row[key] for row in rows())
    assert {name: int(written[name]) for name in counts} == counts


def test_the_readme_counts_the_split() -> None:
    written = dict(re.findall(r"^\| (train|val|sealed) \| (\d+) \|", readme(), re.MULTILINE))
    assert {name: int(number) for name, number in written.items()} == Counter(splits())
