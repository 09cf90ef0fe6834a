"""Preparing: what is saved, what is reported, and what a person is told when it cannot be."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from dspy_toolkit.datasets import (
    SPLITS,
    Dataset,
    DatasetReport,
    DatasetSpec,
    Fractions,
    examples,
    from_records,
    prepare,
)
from dspy_toolkit.datasets.fractions import default_fractions
from dspy_toolkit.datasets.placements import Placement, recall
from dspy_toolkit.errors import DatasetError, StoreError
from dspy_toolkit.store import Ref, Store

Label = Literal["a", "b", "c"]
SPEC = DatasetSpec(source="x.csv", inputs=("text",), outputs=("label",))
FIELDS = {"text": str, "label": Label}


def words(seed: int, count: int = 8) -> str:
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(count))


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": words(i), "label": "abc"[i % 3]} for i in range(start, start + count)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "objects"))


def report_of(store: Store, dataset: Dataset) -> DatasetReport:
    return DatasetReport.model_validate(store.read_json(dataset.report))


def texts(store: Store, ref: Ref) -> list[str]:
    return store.read_frame(ref)["text"].tolist()


def test_three_tables_and_a_report(store: Store) -> None:
    dataset = prepare(from_records(records(300)), SPEC, FIELDS, store)
    tables = [store.read_frame(ref) for ref in (dataset.train, dataset.val, dataset.sealed)]
    for table in tables:
        assert list(table.columns) == ["text", "label", "_row", "_group"]
        assert table["_row"].is_monotonic_increasing
        assert table["_row"].str.fullmatch("[0-9a-f]{16}").all()
    assert sum(map(len, tables)) == 300
    report = report_of(store, dataset)
    assert report.rows == 300
    assert report.splits == dict(zip(SPLITS, map(len, tables), strict=True))
    # Five standard deviations of 300 draws.
    sealed = default_fractions(300).sealed
    assert abs(report.splits["sealed"] - 300 * sealed) < 42
    assert {split: sum(classes.values()) for split, classes in report.classes.items()} == report.splits
    assert report.lengths["text"].min <= report.lengths["text"].median <= report.lengths["text"].max


def test_duplicates_contradictions_and_near_duplicates_are_reported(store: Store) -> None:
    rows = records(60)
    rows.append(dict(rows[0]))  # row 61: an exact copy
    rows.append({"text": rows[1]["text"], "label": "c"})  # row 62: the same input, another label
    rows.append({"text": rows[3]["text"].upper() + "!", "label": "a"})  # row 63: nearly the same input
    report = report_of(store, prepare(from_records(rows), SPEC, FIELDS, store))
    assert (report.rows, report.duplicates, sum(report.splits.values())) == (63, 1, 62)
    assert report.contradictions == ("x.csv, rows 2, 62: the same inputs with different outputs.",)
    assert report.near_duplicates == 2
    assert report.near_duplicate_rows == ((2, 62), (4, 63))


def test_dropped_rows_are_reported(store: Store) -> None:
    rows = [*records(30), {"text": "x", "label": "d"}]
    with pytest.raises(DatasetError, match='row 31: label "d" is not one of a, b, c'):
        prepare(from_records(rows), SPEC, FIELDS, store)
    report = report_of(store, prepare(from_records(rows), SPEC, FIELDS, store, drop_bad_rows=True))
    assert report.bad_rows == ('x.csv, row 31: label "d" is not one of a, b, c.',)
    assert (report.rows, sum(report.splits.values())) == (31, 30)


def test_small_data_still_covers_every_class(store: Store) -> None:
    # Nine rows, three a class: by the hashes alone nearly every seed would leave some class out of some split.
    for seed in range(20):
        spec = SPEC.model_copy(update={"seed": seed})
        report = report_of(store, prepare(from_records(records(9)), spec, FIELDS, store))
        assert all(report.classes[split] == {"a": 1, "b": 1, "c": 1} for split in SPLITS)


def test_a_seed_draws_another_split(store: Store) -> None:
    frame = from_records(records(60))
    assert prepare(frame, SPEC, FIELDS, store) != prepare(frame, SPEC.model_copy(update={"seed": 1}), FIELDS, store)


def test_a_class_with_one_row(store: Store) -> None:
    rows = [{**row, "label": "a"} for row in records(20)]
    rows[7]["label"] = "b"
    with pytest.raises(DatasetError) as caught:
        prepare(from_records(rows), SPEC, FIELDS, store)
    first, last = str(caught.value).splitlines()
    assert first.startswith('x.csv: class "b" of label has 1 row: ')
    assert "Add rows of it, or merge it with another class." in last


def test_a_class_of_near_duplicates(store: Store) -> None:
    rows = records(30)
    rows = [row for row in rows if row["label"] != "c"]
    rows += [{"text": words(99, 20) + "!" * i, "label": "c"} for i in range(8)]
    with pytest.raises(DatasetError, match='class "c" of label has 8 rows in 1 group: '):
        prepare(from_records(rows), SPEC, FIELDS, store)


def test_too_few_rows_or_groups(store: Store) -> None:
    spec = SPEC.model_copy(update={"outputs": ()})
    with pytest.raises(DatasetError, match=r"x\.csv has 2 rows that differ, fewer than the splits"):
        prepare(from_records([*records(2), records(1)[0]]), spec, FIELDS, store)
    with pytest.raises(DatasetError, match="there are 5 rows in 1 group: "):
        prepare(from_records({"text": words(0) + "!" * i} for i in range(5)), spec, FIELDS, store)


def test_threshold_outside_its_range(store: Store) -> None:
    with pytest.raises(DatasetError, match="near_duplicate is 0, outside"):
        prepare(from_records(records(9)), SPEC, FIELDS, store, near_duplicate=0)


def test_bad_specs() -> None:
    with pytest.raises(ValidationError, match=r"must sum to 1, but sum to 0\.9"):
        Fractions(train=0.3, val=0.3, sealed=0.3)
    with pytest.raises(ValidationError, match="name text more than once"):
        DatasetSpec(source="x.csv", inputs=("text",), outputs=("text",))
    with pytest.raises(ValidationError, match="cannot be called _row"):
        DatasetSpec(source="x.csv", inputs=("_row",))


def test_a_row_between_two_splits_is_set_aside(store: Store, tmp_path: Path) -> None:
    memory = tmp_path / "splits.jsonl"
    rows = records(40)
    dataset = prepare(from_records(rows), SPEC, FIELDS, store, remembered=memory)
    one, other = texts(store, dataset.train)[0], texts(store, dataset.sealed)[0]
    # Half of each: at a threshold of 0.3 it is near both.
    rows.append({"text": f"{one} {other}", "label": "a"})
    for _ in range(2):  # and again when asked again
        later = prepare(from_records(rows), SPEC, FIELDS, store, remembered=memory, near_duplicate=0.3)
        report = report_of(store, later)
        assert report.set_aside == ("x.csv, row 41: belongs with rows of train and sealed, so it is in no split.",)
        assert (later.train, later.val, later.sealed) == (dataset.train, dataset.val, dataset.sealed)


def test_a_mended_row_keeps_its_side(store: Store, tmp_path: Path) -> None:
    memory = tmp_path / "splits.jsonl"
    rows = records(60)
    before = prepare(from_records(rows), SPEC, FIELDS, store, remembered=memory)
    # Every row is replaced by a corrected one: no old row is left, yet each stays where its original was.
    mended = [{**row, "text": row["text"] + "."} for row in rows]
    after = prepare(from_records(mended), SPEC, FIELDS, store, remembered=memory)
    for split in SPLITS:
        originals = texts(store, getattr(before, split))
        assert sorted(texts(store, getattr(after, split))) == sorted(f"{text}." for text in originals)


def test_nothing_is_remembered_when_nothing_was_saved(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file where the store's folder should be")
    with pytest.raises(StoreError):
        prepare(
            from_records(records(30)), SPEC, FIELDS, Store(str(tmp_path / "objects")), remembered=tmp_path / "s.jsonl"
        )
    assert not (tmp_path / "s.jsonl").exists()


def test_memory_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="make it writable, or set DSPY_TOOLKIT_HOME"):
        prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=tmp_path / "file" / "splits.jsonl")


def test_damaged_memory(store: Store, tmp_path: Path) -> None:
    memory = tmp_path / "splits.jsonl"
    prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    lines = memory.read_text().splitlines()
    memory.write_text("\n".join([*lines[:4], lines[4][:-9], *lines[5:]]) + "\n")
    damaged = memory.read_bytes()
    with pytest.raises(DatasetError, match=r"splits\.jsonl, line 5 cannot be read"):
        prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    assert memory.read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [
        {"split": "test"},
        {"row": 7},
        {"keys": "k"},
        {"more": 1},
        {"text": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_line_that_is_no_placement(tmp_path: Path, change: dict[str, Any]) -> None:
    memory = tmp_path / "splits.jsonl"
    line = {"row": "a" * 16, "group": "b" * 16, "split": "val", "text": "t", "keys": ["k"]}
    memory.write_text(f"{json.dumps(line)}\n\n")
    assert recall(memory) == [Placement("a" * 16, "b" * 16, "val", "t", ("k",))]
    memory.write_text(f"{json.dumps(line)}\n{json.dumps(line | change)}\n")
    with pytest.raises(DatasetError, match="line 2 cannot be read"):
        recall(memory)


def test_memory_without_a_final_newline(store: Store, tmp_path: Path) -> None:
    """Some editors take it; the first new line must not run into the last old one."""
    memory = tmp_path / "splits.jsonl"
    prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    before = memory.read_bytes()
    memory.write_bytes(before.rstrip(b"\n"))
    prepare(from_records(records(40)), SPEC, FIELDS, store, remembered=memory)
    assert memory.read_bytes().startswith(before)
    assert len(recall(memory)) == 40


def test_memory_whose_end_is_torn(store: Store, tmp_path: Path) -> None:
    """The line and the backup are named, and the backup gives every row its split again."""
    memory = tmp_path / "splits.jsonl"
    prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    dataset = prepare(from_records(records(40)), SPEC, FIELDS, store, remembered=memory)
    whole = memory.read_bytes()
    memory.write_bytes(whole[:-20])
    with pytest.raises(DatasetError, match=r"line 40 cannot be read.*Put .*splits\.jsonl\.backup in its place"):
        prepare(from_records(records(40)), SPEC, FIELDS, store, remembered=memory)
    (tmp_path / "splits.jsonl.backup").replace(memory)
    assert prepare(from_records(records(40)), SPEC, FIELDS, store, remembered=memory) == dataset
    assert memory.read_bytes() == whole


def test_memory_only_grows(store: Store, tmp_path: Path) -> None:
    memory = tmp_path / "splits.jsonl"
    prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    first = memory.read_bytes()
    prepare(from_records(records(30)), SPEC, FIELDS, store, remembered=memory)
    assert memory.read_bytes() == first
    prepare(from_records(records(30, start=20)), SPEC, FIELDS, store, remembered=memory)
    assert memory.read_bytes().startswith(first)
    lines = [json.loads(line) for line in memory.read_text().splitlines()]
    assert len({line["row"] for line in lines}) == len(lines) == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "objects",
        "splits.jsonl",
        "splits.jsonl.backup",
        "splits.jsonl.lock",
    ]


def _prepare_part(folder: Path, start: int) -> None:
    store = Store(str(folder / "objects"))
    prepare(from_records(records(40, start)), SPEC, FIELDS, store, remembered=folder / "splits.jsonl")


def test_two_processes_place_every_row_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_prepare_part, args=(tmp_path, start)) for start in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    lines = [json.loads(line) for line in (tmp_path / "splits.jsonl").read_text().splitlines()]
    assert len({line["row"] for line in lines}) == len(lines) == 60


class Answer(BaseModel):
    value: int
    note: str | None = None


def test_examples_are_typed(store: Store) -> None:
    spec = DatasetSpec(source="x.jsonl", inputs=("question", "count"), outputs=("tags", "answer"))
    fields: dict[str, Any] = {"question": str, "count": int | None, "tags": list[str], "answer": Answer}
    rows = [
        {"question": words(i), "count": None if i % 2 else i, "tags": ["x"] * (i % 3), "answer": {"value": i}}
        for i in range(30)
    ]
    dataset = prepare(from_records(rows), spec, fields, store)
    for ref in (dataset.train, dataset.val, dataset.sealed):
        frame = store.read_frame(ref)
        for typed, plain in zip(examples(frame, spec, fields), examples(frame[::1], spec), strict=True):
            assert set(typed.inputs().keys()) == {"question", "count"}
            assert set(typed.keys()) == {"question", "count", "tags", "answer"}
            number = typed.answer.value
            assert typed.answer == Answer(value=number)
            assert plain.answer == {"value": number, "note": None}
            assert plain.tags == typed.tags == ["x"] * (number % 3)
            assert plain.count == typed.count == (None if number % 2 else number)
            assert plain.count is None or type(plain.count) is int


def test_examples_of_another_table(store: Store) -> None:
    dataset = prepare(from_records(records(30)), SPEC, FIELDS, store)
    with pytest.raises(DatasetError, match=r'The table has no column "txt"\. Did you mean text\?'):
        examples(store.read_frame(dataset.train), SPEC.model_copy(update={"inputs": ("txt",)}))
