"""What is printed to be copied into a shell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dspy_toolkit.display.tables import opening


@pytest.mark.parametrize(("platform", "command"), [("darwin", "open"), ("linux", "xdg-open")])
def test_a_file_is_opened_by_the_name_that_it_has_from_here(
    platform: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.chdir(tmp_path)
    assert opening(tmp_path / "home" / "run.html") == f"{command} home/run.html"
    assert opening(tmp_path / "a home" / "run.html") == f"{command} 'a home/run.html'"
    outside = tmp_path.parent / "run.html"
    assert opening(outside) == f"{command} {outside}"
