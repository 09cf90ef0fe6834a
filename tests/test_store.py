"""Objects: what is damaged is a cache miss, and is made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dspy_toolkit.errors import ObjectMissing, StoreError
from dspy_toolkit.store import Ref, Store

DATA = b"some bytes"


def file_of(store: Store, ref: Ref) -> Path:
    return Path(store.root, ref.sha256[:2], f"{ref.sha256}.{ref.kind}")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [damage_empty, damage_bit])
@pytest.mark.parametrize("how", ["read", "save", "exists"])
def test_a_damaged_object_is_set_aside_once_and_made_again(
    tmp_path: Path, damage, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path / "objects"))
    ref = store.save(DATA, "json")
    damage(file_of(store, ref))
    if how == "read":
        with pytest.raises(ObjectMissing, match="Run the same command again"):
            store.read(ref)
    elif how == "exists":
        assert not store.exists(ref)
    assert store.save(DATA, "json") == ref
    assert store.read(ref) == DATA and store.exists(ref)
    (record,) = caplog.records
    assert "is damaged" in record.getMessage()
    assert len(list(file_of(store, ref).parent.glob("*.damaged-*"))) == 1


def test_a_damaged_object_in_a_bucket_is_removed_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    store = Store("memory://bucket/objects")
    ref = store.save(DATA, "json")
    store._fs.pipe_file(store._locate(ref), b"")
    assert not store.exists(ref)
    assert store.read(store.save(DATA, "json")) == DATA
    assert "is damaged (it is empty)" in caplog.text


@pytest.mark.parametrize("name", ["a?b", "a::b", "a%20b", "a#b", "memory:", "~", "s3::x"])
def test_any_name_of_a_home_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store = Store(str(tmp_path / name / "objects"))
    ref = store.save(DATA, "json")
    assert file_of(store, ref).read_bytes() == DATA and store.read(ref) == DATA
    assert os.listdir(tmp_path) == [name]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ref = store.save(DATA, "json")
    file_of(store, ref).unlink()
    file_of(store, ref).mkdir()
    with pytest.raises(StoreError, match="Cannot read"):
        store.read(ref)


def test_an_address_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"cannot be reached.*store\.address"):
        Store("nowhere://bucket/objects")
