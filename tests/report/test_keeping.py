"""A page is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.errors import StoreError
from dspy_toolkit.report import keep_report


def test_a_page_is_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "colours" / "run.html"
    keep_report(path, "one é")
    keep_report(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_page_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.html"
    keep_report(path, "one")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="Cannot write the report .*: No space left on device. Free some space"):
        keep_report(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    with pytest.raises(StoreError, match="Cannot write the report"):
        keep_report(tmp_path / "reports" / "run.html", "one")
