"""The wheel in an environment of its own, which pip alone fills: no compiler, no lock, no clone beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIMIZE = """
import dspy, dspy_toolkit

program = dspy.Predict("text -> label: Literal['good', 'bad']")
result = dspy_toolkit.optimize(program, "films.csv", optimizer="labelled", budget="20")
print(dspy_toolkit.__file__, result.reason)
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_pip_alone_gives_an_environment_that_optimizes_and_predicts(films: Path, tmp_path: Path) -> None:
    here = tmp_path / "environment"
    venv.create(here, with_pip=True)
    # On the path are the environment's own programs: no compiler, no git.
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DSPY_TOOLKIT_", "PYTHON"))}
    mine |= {"PATH": str(here / "bin"), "DSPY_TOOLKIT_HOME": str(tmp_path / "home"), "DSPY_TOOLKIT_LM__LEASE": "share"}

    def run(*command: str | Path, code: int = 0, folder: Path = films.parent) -> str:
        ended = subprocess.run(command, cwd=folder, env=mine, capture_output=True, text=True, check=False)
        assert ended.returncode == code, f"{command}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout + ended.stderr

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, folder=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    # Uncompiled, as that is a third of the time.
    run(here / "bin/pip", "install", "--quiet", "--only-binary", ":all:", "--no-compile", f"{wheel}[blas]")
    assert "No broken requirements" in run(here / "bin/pip", "check")

    toolkit = here / "bin/dspy-toolkit"
    question = ("predict", "router", "--request", "Shrink it until it fits on a phone.")
    assert "Run `dspy-toolkit fetch-model`" in run(toolkit, *question, code=1)
    assert str(here / "share") in run(toolkit, "fetch-model")
    assert "project" in run(toolkit, *question)
    assert str(here) in run(here / "bin/python", "-c", OPTIMIZE)
