"""Many rows: the work grows with the rows and not with their pairs, and 100,000 are split within a minute and a gigabyte."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import made_up_rows, take, write_rows
from dspy_toolkit.datasets.neighbors import Neighbors, comparable


def texts_of(count: int) -> list[str]:
    return list(dict.fromkeys(comparable([row["text"]]) for row in made_up_rows(count)))


def compare_all(texts: list[str]) -> list[tuple[int, int]]:
    sets = [{text[start : start + 5] for start in range(len(text) - 4)} for text in texts]
    pairs = ((i, j) for j in range(len(sets)) for i in range(j))
    return [(i, j) for i, j in pairs if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])]


def test_five_thousand_rows_are_not_compared_pair_by_pair() -> None:
    began = time.process_time()
    some = texts_of(400)
    near = compare_all(some)
    for_one = (time.process_time() - began) / (len(some) * (len(some) - 1) / 2)
    assert near, "else nothing is shown"

    many = texts_of(5000)
    began = time.process_time()
    labels = Neighbors(many, 0.8).joined(np.arange(len(many)), 0)
    took = time.process_time() - began
    assert took < for_one * len(many) * (len(many) - 1) / 2 / 20
    # The first rows of a seed are the same however many follow.
    assert many[: len(some)] == some
    assert all(labels[i] == labels[j] for i, j in near)


def test_made_up_rows_are_grouped_as_by_comparing_every_pair() -> None:
    texts = texts_of(600)
    labels = Neighbors(texts, 0.8).joined(np.arange(len(texts)), 0)
    groups = {i: {i} for i in range(len(texts))}
    for i, j in compare_all(texts):
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            groups |= dict.fromkeys(groups[j], groups[i])
    found: defaultdict[int, set[int]] = defaultdict(set)
    for text, label in enumerate(labels.tolist()):
        found[label].add(text)
    assert all(found[label] == groups[text] for text, label in enumerate(labels.tolist()))
    assert max(map(len, found.values())) > 1


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.soak)])
def test_a_minute_and_a_gigabyte_and_then_five_seconds(tmp_path: Path, count: int) -> None:
    rows = made_up_rows(count + count // 100)
    write_rows(rows[:count], tmp_path / "rows.jsonl")
    write_rows(rows[:count], tmp_path / "rows.csv")
    write_rows(rows, tmp_path / "grown.csv")
    stages = {}
    for kind, file in (("first", "rows.csv"), ("second", "rows.csv"), ("grown", "grown.csv")):
        with multiprocessing.get_context("spawn").Pool(1) as process:  # whose memory is its own
            stages |= process.apply(take, (kind, tmp_path, file))
    # Seconds of the processor: what a wall clock says depends on what else the machine does.
    assert stages["first"]["processor_seconds"] < 60
    assert stages["second"]["processor_seconds"] < 5
    assert stages["grown"]["processor_seconds"] < 60
    assert max(stage["peak_megabytes"] for stage in stages.values()) < 1000
    distinct = len({tuple(row.values()) for row in rows})
    assert 0.99 * distinct <= len((tmp_path / "splits.jsonl").read_bytes().splitlines()) <= distinct
