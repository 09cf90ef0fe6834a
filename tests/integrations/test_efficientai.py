"""integrations/efficientai under a loader that does what the toolkit's does: by folder, with `sys.argv`, not standing alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from dspy_toolkit.registry import list_projects, list_versions
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.settings import RegistrySettings, Settings

pytest.importorskip("typer")

ROOT = Path(__file__).parents[2]
LOADER = """
import importlib, sys
folder, command, *arguments = sys.argv[1:]
sys.path.insert(0, folder + "/src")
sys.argv = ["cli.py", command, *arguments]
try:
    importlib.import_module("cli").app(standalone_mode=False)
except SystemExit as ended:
    print("the loader says: failed with", ended.code)
    sys.exit(1)
print("the loader says: done")
"""


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder with our command among its projects."""
    there = tmp_path / "projects" / "DSPy_Toolkit" / "src"
    there.mkdir(parents=True)
    shutil.copy(ROOT / "integrations" / "efficientai" / "src" / "cli.py", there)
    return tmp_path


def run(toolkit: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Its own variables alone: those of this session name a home of their own.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DSPY_TOOLKIT", "MLFLOW"))}
    return subprocess.run(
        [sys.executable, "-c", LOADER, str(toolkit / "projects" / "DSPy_Toolkit"), *words],
        cwd=toolkit, env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_command_that_did_well_returns_with_its_arguments_understood(toolkit: Path) -> None:
    done = run(toolkit, "projects", "new", "triage", "--template", "classify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("the loader says: done\n")
    assert (toolkit / "triage" / "project.toml").is_file()
    helped = run(toolkit, "programs", "reprove", "--help")
    assert "Usage: dspy-toolkit programs reprove" in helped.stdout and helped.returncode == 0


def test_a_command_that_failed_is_a_failure_to_the_loader(toolkit: Path) -> None:
    failed = run(toolkit, "projects", "show", "nobody")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: ") and failed.stderr.count("\n") == 1
    assert failed.stdout == "the loader says: failed with 1\n"
    assert run(toolkit, "projects", "shwo").stdout.endswith("failed with 2\n")


@pytest.mark.parametrize(
    ("ours", "expected"),
    [("", "environment (DSPY_TOOLKIT_REGISTRY__TRACKING_URI)"), ("sqlite:///own.db", "dspy-toolkit.toml")],
)
def test_the_toolkits_mlflow_is_taken_unless_a_setting_names_another(toolkit: Path, ours: str, expected: str) -> None:
    if ours:
        (toolkit / "dspy-toolkit.toml").write_text(f'[registry]\ntracking_uri = "{ours}"\n')
    shown = run(
        toolkit, "config", "show", "registry.tracking_uri", "--json", MLFLOW_TRACKING_URI="http://mlflow.example"
    )
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout.rpartition("the loader")[0])["registry.tracking_uri"]["from"] == expected


def test_a_version_is_written_to_the_toolkits_mlflow_and_nowhere_else(
    toolkit: Path, home: Settings, save_questions: Callable[..., int], questions: Path, empty_mlflow: Path
) -> None:
    save_questions("Be brief.")
    export_bundle(home, "questions@1", toolkit / "q.bundle")
    theirs, ours = toolkit / "theirs.db", Settings(home=toolkit / "our home")
    shutil.copy(empty_mlflow, theirs)
    made = run(
        toolkit, "programs", "import", "q.bundle", "--project", str(questions),
        MLFLOW_TRACKING_URI=f"sqlite:///{theirs}", DSPY_TOOLKIT_HOME=str(ours.path()),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("Imported as questions@1.")
    address = RegistrySettings(tracking_uri=SecretStr(f"sqlite:///{theirs}"))
    (version,) = list_versions(ours.model_copy(update={"registry": address}), "questions")
    assert (version.version, version.optimizer) == (1, "bootstrap")
    assert not ours.path("mlflow.db").exists() and list_projects(ours) == []
    assert list(toolkit.glob("*.db")) == [theirs] and not (toolkit / "mlruns").exists()
