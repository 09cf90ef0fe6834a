"""The laws of splitting, over generated data: short sentences of few words, so that near-duplicates abound."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dspy_toolkit.datasets import SPLITS, Dataset, DatasetReport, DatasetSpec, from_records, prepare
from dspy_toolkit.datasets.grouping import Placed, Row, cover_classes, place
from dspy_toolkit.datasets.placements import Placement
from dspy_toolkit.datasets.spec import Fractions
from dspy_toolkit.store import Store, digest

FRACTIONS = Fractions()
THRESHOLD = 0.5
SEEDS = st.integers(0, 1000)
WORDS = ["lorem ", "ipsum ", "dolor ", "sit ", "amet ", "tempor ", "magna ", "aliqua "]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)
KEYS = st.lists(st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6"]), max_size=2, unique=True).map(tuple)
ROWS = st.lists(st.tuples(SENTENCES, st.just(()) | KEYS), max_size=25, unique=True)
Pair = tuple[str, tuple[str, ...]]
LAW = settings(max_examples=120, deadline=None)


def as_rows(pairs: list[Pair]) -> list[Row]:
    return [Row(digest(text, keys)[:16], text, keys) for text, keys in pairs]


def place_rows(rows: list[Row], old: list[Placement], seed: int) -> Placed:
    return place(rows, old, seed=seed, fractions=FRACTIONS, threshold=THRESHOLD)


def linked(one: Placement, other: Placement) -> bool:
    return near(one.text, other.text) or bool(set(one.keys) & set(other.keys))


@cache
def near(one: str, other: str) -> bool:
    """By the definition, and not by the code that is tested."""
    grams, others = (
        {text[start : start + 5] for start in range(len(text) - 4)} or {text.ljust(5, "\0")} for text in (one, other)
    )
    return len(grams & others) / len(grams | others) >= THRESHOLD - 1e-9


def assert_lawful(placements: list[Placement]) -> None:
    splits = defaultdict(set)
    for entry in placements:
        splits[entry.group].add(entry.split)
    assert all(len(found) == 1 for found in splits.values()), "a group is in two splits"
    for position, one in enumerate(placements):
        for other in placements[:position]:
            assert one.split == other.split or not linked(one, other), "linked rows are in two splits"


@LAW
@given(ROWS, SEEDS)
def test_linked_rows_are_never_in_two_splits(pairs: list[Pair], seed: int) -> None:
    rows = as_rows(pairs)
    placed = place_rows(rows, [], seed)
    assert {entry.row for entry in placed.placements} == {row.row for row in rows}
    assert not placed.aside, "with no old rows there is nothing to be torn between"
    assert_lawful(placed.placements)
    for one in placed.placements:
        for other in placed.placements:
            assert one.group == other.group or not linked(one, other), "linked rows are one group"


@LAW
@given(ROWS, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(pairs: list[Pair], seed: int, source: random.Random) -> None:
    rows = as_rows(pairs)
    shuffled = rows.copy()
    source.shuffle(shuffled)
    assert place_rows(rows, [], seed) == place_rows(shuffled, [], seed)


@LAW
@given(ROWS, st.lists(st.integers(0, 3), min_size=25, max_size=25), SEEDS, st.randoms(use_true_random=False))
def test_old_rows_stay_whatever_is_added(
    pairs: list[Pair], batches: list[int], seed: int, source: random.Random
) -> None:
    rows = as_rows(pairs)
    memory: list[Placement] = []
    for batch in range(4):
        # The rows so far and the batch's own, in any order, as if lines had been put in anywhere.
        current = [row for row, number in zip(rows, batches, strict=False) if number <= batch]
        source.shuffle(current)
        placed = place_rows(current, memory, seed)
        known = {entry.row for entry in memory}
        assert not known & {entry.row for entry in placed.placements}, "an old row was placed again"
        memory = [*memory, *placed.placements]
        present = {row.row for row in current}
        assert {entry.row for entry in memory} | set(placed.aside) == present
        assert_lawful(memory)

        again = place_rows(current, memory, seed)
        assert again.placements == []
        assert again.aside == placed.aside, "what was set aside stays so, for the same reason"
        split_of = {entry.group: entry.split for entry in memory}
        for groups in placed.aside.values():
            assert len({split_of[group] for group in groups}) > 1, "a row was set aside without a reason"


def test_sides_are_taken_ring_by_ring() -> None:
    old = [
        Placement(row="a0", group="a0", split="train", text="alpha text", keys=("k1",)),
        Placement(row="b0", group="b0", split="sealed", text="another one", keys=("k2",)),
    ]
    new = [
        Row("c1", "touches both", ("k1", "k2", "k3")),
        Row("c2", "touches the first and c3", ("k1", "k4")),
        Row("c3", "beside c2 only, then", ("k4",)),
        Row("c4", "seen through c1 alone", ("k3", "k5")),
        Row("c5", "and this through c4", ("k5",)),
    ]
    placed = place_rows(new, old, seed=0)
    assert placed.aside == {"c1": ("a0", "b0", "c4")}
    assert {entry.row: entry.group for entry in placed.placements} == {"c2": "a0", "c3": "a0", "c4": "c4", "c5": "c4"}
    assert placed.founded == {"c4"}


@LAW
@given(ROWS, SEEDS, st.lists(st.sampled_from("abc"), min_size=25, max_size=25))
def test_covering_moves_whole_new_groups_and_uncovers_nothing(pairs: list[Pair], seed: int, labels: list[str]) -> None:
    placed = place_rows(as_rows(pairs), [], seed)
    classes = {entry.row: label for entry, label in zip(placed.placements, labels, strict=False)}
    frozen = {group for group in placed.founded if int(group, 16) % 3 == 0}
    moves = cover_classes(placed.placements, classes, placed.founded - frozen, seed)
    assert not frozen & set(moves), "a remembered group moved"

    def covered(split_of: dict[str, Any]) -> set[tuple[str, str]]:
        return {(classes[entry.row], split_of[entry.group]) for entry in placed.placements}

    before = {entry.group: entry.split for entry in placed.placements}
    assert covered(before) <= covered({**before, **moves})
    if len(placed.founded) >= 3 and not frozen and len(set(classes.values())) == 1:
        assert len(covered({**before, **moves})) == 3


def splits_of(store: Store, dataset: Dataset) -> dict[str, str]:
    return {row: split for split in SPLITS for row in store.read_frame(getattr(dataset, split))["_row"]}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(SENTENCES, min_size=12, max_size=40, unique=True), st.integers(8, 40), st.randoms(use_true_random=False)
)
def test_the_laws_hold_through_files(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[str], first: int, source: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("home")
    store, memory = Store(str(folder / "objects")), folder / "splits.jsonl"
    spec = DatasetSpec(source="x.csv", inputs=("text",))

    def run(texts: list[str]) -> Dataset:
        frame = from_records({"text": text} for text in texts)
        return prepare(frame, spec, {"text": str}, store, remembered=memory)

    some = sentences[:first]
    groups = {
        entry.group
        for entry in place(as_rows([(s, ()) for s in some]), [], seed=0, fractions=FRACTIONS, threshold=0.8).placements
    }
    assume(len(groups) >= 3)
    before = run(some)
    assert run(some) == before, "the same data gives the same references"
    shuffled = source.sample(some, len(some))
    after = run(shuffled)
    assert (after.train, after.val, after.sealed) == (before.train, before.val, before.sealed)

    everything = source.sample(sentences, len(sentences))
    grown = run(everything)
    old, new = splits_of(store, before), splits_of(store, grown)
    assert {row: new[row] for row in old} == old
    report = DatasetReport.model_validate(store.read_json(grown.report))
    assert len(new) + len(report.set_aside) == len(sentences), "every row is in one split, or named as set aside"
    assert len({group for s in SPLITS for group in set(store.read_frame(getattr(grown, s))["_group"])}) == sum(
        report.groups.values()
    ), "a group is in two splits"


def test_rows_that_share_the_group_column_share_a_split(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(str(tmp_path_factory.mktemp("objects")))
    spec = DatasetSpec(source="x.csv", inputs=("text",), group="author")
    source = random.Random(0)
    rows = [
        {"text": "".join(source.choices("abcdefghij", k=40)), "author": None if i % 4 == 0 else i % 11}
        for i in range(120)
    ]
    # A copy under another author ties the two authors together.
    rows.append({"text": rows[1]["text"], "author": 2})
    dataset = prepare(from_records(rows), spec, {"text": str}, store)
    author_of = {row["text"]: row["author"] for row in rows[:-1]}
    splits: defaultdict[Any, set[str]] = defaultdict(set)
    for split in SPLITS:
        for text in store.read_frame(getattr(dataset, split))["text"]:
            splits[author_of[text]].add(split)
    assert len(splits.pop(None)) == 3, "rows without an author are on their own"
    assert all(len(found) == 1 for found in splits.values())
    assert splits[1] == splits[2]
