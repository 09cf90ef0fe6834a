"""The hash of a folder's sources, and the versions that stand beside it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dspy_toolkit.code_version import LIBRARY, sources_sha256, versions


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A package with a built-in project in it."""
    for name in ("__init__.py", "lm/engine.py", "projects/router/program.py"):
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path / "library"


def sha256(library: Path, *left_out: str) -> str:
    return sources_sha256.__wrapped__(library, left_out or ("projects",))


def test_every_edit_of_a_source_counts(library: Path) -> None:
    engine, seen = library / "lm" / "engine.py", [sha256(library)]
    engine.write_text("# lm/engine.py \n")
    seen.append(sha256(library))
    engine.rename(library / "lm" / "motor.py")
    seen.append(sha256(library))
    (library / "lm" / "__init__.py").touch()
    seen.append(sha256(library))
    (library / "lm" / "motor.py").unlink()
    seen.append(sha256(library))
    assert len(set(seen)) == len(seen)


def test_what_is_left_out_and_what_is_no_source_do_not_count(library: Path) -> None:
    before = sha256(library)
    (library / "projects" / "router" / "program.py").write_text("# a project's files are in its own fingerprint\n")
    (library / "__pycache__").mkdir()
    (library / "__pycache__" / "engine.cpython-311.pyc").touch()
    (library / "page.css").touch()
    assert sha256(library) == before
    assert sha256(library, "lm") != before


def test_the_same_files_elsewhere_are_the_same(library: Path, tmp_path: Path) -> None:
    before = sha256(library)
    library.rename(tmp_path / "moved")
    assert sha256(tmp_path / "moved") == before


def test_the_versions_name_all_that_has_a_say() -> None:
    found = versions()
    assert found["python"] == sys.version.split()[0]
    assert found["dspy-toolkit sources"] == sha256(LIBRARY)[:16]
    for package in ("dspy", "gepa", "litellm", "llguidance", "mlx", "mlx-lm", "numpy", "optuna", "transformers"):
        assert found[package] == version(package)
    assert "prefect" not in found
