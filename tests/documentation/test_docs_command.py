"""`dspy-toolkit docs` in a copy of the repository: what is stale is named, and mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dspy_toolkit.cli import main
from tests.documentation.shell import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The documentation as copies, and all else of the repository as links."""
    here = tmp_path / "a clone"
    here.mkdir()
    for entry in ROOT.iterdir():
        if entry.name == "docs":
            shutil.copytree(entry, here / "docs", ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.suffix == ".md" or entry.name == "llms.txt":
            shutil.copy(entry, here)
        elif not entry.name.startswith("."):
            (here / entry.name).symlink_to(entry)
    return here


def docs(capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `dspy-toolkit docs`; the script that it runs is another process."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["docs", *options])
    return int(ended.value.code or 0), *capfd.readouterr()


@pytest.mark.system  # all pages are made twice, in processes of their own
def test_a_stale_page_is_named_by_check_and_mended_by_build(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone / "docs")  # a folder below the clone's
    page = clone / "docs/reference/errors.md"
    page.write_text("edited")
    code, out, said = docs(capfd, "check", "--json")
    assert code == 1 and out, said
    checked = json.loads(out)
    assert not checked["ok"] and "docs/reference/errors.md" in checked["stale"] and checked["changed"] == []
    assert page.read_text() == "edited"

    code, out, said = docs(capfd, "build")
    assert (code, said) == (0, "")
    assert "wrote docs/reference/errors.md\n" in out
    assert "## `ToolkitError`" in page.read_text()


def test_outside_a_clone_it_is_said_where_documentation_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/build.py").write_text("raise SystemExit('another project')")
    monkeypatch.chdir(tmp_path)
    code, out, said = docs(capfd, "build")
    assert (code, out) == (1, "")
    assert said == f"Error: {tmp_path} is in no clone of the toolkit, and its documentation is made in one. " + (
        "Change to the clone's folder.\n"
    )
