"""Reading: every kind of file gives plain Python values under the row numbers that a person sees."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.datasets import from_records, read_rows
from dspy_toolkit.errors import DatasetError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_keeps_text_as_written_and_spreadsheet_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", '\ufefftext,label\nhello,NA\n\n"two\nlines",007\nlast,\n')
    frame = read_rows(path)
    assert frame.index.name == "row"
    # The header is row 1; the blank row 3 is skipped, and counted.
    assert frame.index.tolist() == [2, 4, 5]
    assert frame["text"].tolist() == ["hello", "two\nlines", "last"]
    assert frame["label"].tolist() == ["NA", "007", None]


def test_csv_row_shorter_than_its_header_lacks_a_value(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "x.csv", "a,b\n1\n"))["b"].tolist() == [None]


def test_jsonl_keeps_types_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"n": 1, "text": "a\u2028b"}\n\n{"n": null, "tags": ["x"]}\n')
    frame = read_rows(path)
    assert frame.index.tolist() == [1, 3]
    assert frame["n"].tolist() == [1, None]
    assert type(frame["n"].iloc[0]) is int
    assert frame["text"].tolist() == ["a\u2028b", None]
    assert frame["tags"].tolist() == [None, ["x"]]


def test_parquet_gives_python_values(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pd.DataFrame({"n": pd.Series([1, None], dtype="Int64"), "tags": [["a"], []]}).to_parquet(path)
    frame = read_rows(path)
    assert frame.index.tolist() == [1, 2]
    assert frame["n"].tolist() == [1, None]
    assert frame["tags"].tolist() == [["a"], []]


@given(st.lists(st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8"))}), min_size=1, max_size=5))
def test_jsonl_reading_inverts_writing(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes("\n".join(lines).encode())
    assert read_rows(path)["text"].tolist() == [record["text"] for record in records]


def test_records_in_memory_are_counted_from_one() -> None:
    frame = from_records([{"a": 1}, {"b": 2}])
    assert frame.index.tolist() == [1, 2]
    assert frame["a"].tolist() == [1, None]


def test_missing_file_names_the_nearest_ones(tmp_path: Path) -> None:
    write(tmp_path / "questions.csv", "a\n1\n")
    write(tmp_path / "notes.txt", "")
    with pytest.raises(DatasetError, match=r"question\.csv does not exist\. Did you mean questions\.csv\?"):
        read_rows(tmp_path / "question.csv")


def test_missing_folder_and_folder_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither does its folder"):
        read_rows(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(DatasetError, match="is a folder"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.xlsx", b"PK", r"\.xlsx is not one of \.csv, \.jsonl, \.parquet"),
        ("x.csv", b"", "has no rows"),
        ("x.csv", b"text,label\n", "has no rows"),
        ("x.jsonl", b"\n", "has no rows"),
        ("x.csv", b"text\ncaf\xe9\n", "is not UTF-8: byte 0xe9"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", "line 3"),
        ("x.csv", b"a,b\n1,2,3\n", "row 2 has more cells than the header"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "row 2: not JSON"),
        ("x.jsonl", b'[1]\n{"a": 1}\n', "row 1: a list, where an object is expected"),
        ("x.parquet", b"PAR1", "is not a whole Parquet file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)


def test_all_bad_lines_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_rows(write(tmp_path / "x.jsonl", 'no\n{"a": 1}\n7\n'))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[:2]] == [
        f"{tmp_path}/x.jsonl, row 1",
        f"{tmp_path}/x.jsonl, row 3",
    ]


def test_a_parquet_file_with_a_column_twice_or_a_hole(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "label", "text"]), path)
    with pytest.raises(DatasetError, match="more than one column text"):
        read_rows(path)
    whole = path.read_bytes()
    for start in range(4, len(whole) - 8, 40):
        path.write_bytes(whole[:start] + whole[start + 7 :])
        with pytest.raises(DatasetError, match=r"x\.parquet (is not a whole Parquet file|has more than one)") as caught:
            read_rows(path)
        assert "\n" not in str(caught.value)
