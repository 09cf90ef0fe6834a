"""The names of sealed rows in the ledger: an edited row is not a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.datasets import DatasetSpec, from_records, prepare
from dspy_toolkit.datasets.placements import Placement, remember
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.pipeline.row_names import row_names
from dspy_toolkit.store import Store

SPEC = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))
WORDS = [
    "lime",
    "rose",
    "sky",
    "grass",
    "blood",
    "sea",
    "moss",
    "ruby",
    "leaf",
    "coal",
    "snow",
    "sand",
    "gold",
    "wine",
    "mint",
    "plum",
    "rust",
    "ash",
    "tar",
    "silk",
]
ROWS = [{"text": f"The {one} and the {two}", "label": "red"} for one in WORDS for two in WORDS[:6] if one != two]


def sealed(rows: list[dict[str, Any]], folder: Path, spec: DatasetSpec = SPEC, remembered: Path | None = None) -> Any:
    store = Store(str(folder / "store"))
    fields = dict.fromkeys((*spec.inputs, *spec.outputs), str)
    dataset = prepare(from_records(rows), spec, fields, store, near_duplicate=1.0, remembered=remembered)
    return store.read_frame(dataset.sealed)


def edited(row: dict[str, Any], how: str) -> dict[str, Any]:
    text, label = row["text"], row["label"]
    if how == "spaces":
        text = f"  {text.replace(' ', '   ')} "
    if how == "case":
        text = text.upper()
    if how == "label":
        label = "blue"
    return {("question" if how == "column" else "text"): text, "label": label}


@pytest.mark.parametrize("how", ["spaces", "case", "label", "column"])
@pytest.mark.parametrize("memory", [True, False])
def test_cosmetic_edits_leave_the_same_test_set(tmp_path: Path, how: str, memory: bool) -> None:
    remembered = tmp_path / "splits.jsonl" if memory else None
    spec = SPEC.model_copy(update={"inputs": ("question",)}) if how == "column" else SPEC
    before = sealed(ROWS, tmp_path, remembered=remembered)
    after = sealed([edited(row, how) for row in ROWS], tmp_path, spec, remembered)
    assert not set(before["_row"]) & set(after["_row"]), "they are other rows to the eye of a hash"
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def ask(frame: Any, spec: DatasetSpec, night: str) -> int:
        names = row_names(frame, spec, remembered)
        return ledger.grant(names, project="p", candidate=night, champion="c").looks

    assert ask(before, SPEC, "one") == 1
    assert ask(after, spec, "two") == 2


def test_a_mended_typo_is_known_by_what_its_group_was(tmp_path: Path) -> None:
    """The row that founded the group has left the data; its placement knows its hash and its text."""
    remembered = tmp_path / "splits.jsonl"
    frame = sealed(ROWS, tmp_path)
    group = str(frame["_group"].iloc[0])
    remember(remembered, [Placement(row="0123456789abcdef", group=group, split="sealed", text="the lyme and the rose")])
    names = row_names(frame, SPEC, remembered)
    assert "0123456789abcdef" in names
    assert names - row_names(frame, SPEC) > {"0123456789abcdef"}


def test_rows_of_other_groups_bring_no_names(tmp_path: Path) -> None:
    remembered = tmp_path / "splits.jsonl"
    remember(remembered, [Placement(row="0123456789abcdef", group="another", split="sealed", text="something else")])
    frame = sealed(ROWS, tmp_path)
    assert row_names(frame, SPEC, remembered) == row_names(frame, SPEC)


def test_rows_of_version_0_1_0_are_known_by_their_hashes(tmp_path: Path) -> None:
    frame = sealed(ROWS, tmp_path)
    assert set(frame["_row"]) <= row_names(frame, SPEC)


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1), st.integers(1, 3))
def test_a_name_is_of_the_normalised_text_alone(one: str, two: str, spaces: int) -> None:
    from dspy_toolkit.datasets.neighbors import comparable
    from dspy_toolkit.pipeline.row_names import name_of_text

    plain = name_of_text(comparable([one, two]))
    assert name_of_text(comparable([" " * spaces + one, two + "\n" * spaces])) == plain
    assert name_of_text(comparable([two, one])) == plain, "the order of the columns does not count"
    assert name_of_text(comparable([f"{one}x", f"{two}x"])) != plain
