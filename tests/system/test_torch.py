"""The torch engine's contract on a CPU build of torch, where one can be had; where not, the skip says why.

Torch is no part of the ordinary environment. Unless it is there already, the exact CPU build is unpacked into a folder of
its own under the temporary folder, kept for the next time, and put on the path of one process; nothing else sees it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH = "2.13.0"
TESTS = ("tests/lm/engine/test_contract.py", "tests/lm/torch/test_engine.py")

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def torch_path() -> str:
    """What PYTHONPATH must hold for torch to be found; nothing where it is installed anyway."""
    from dspy_toolkit.lm.models.hardware import torch_installed

    if torch_installed():
        return ""
    mine = Path(tempfile.gettempdir()) / f"dspy-toolkit-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    if mine.stat().st_uid != os.getuid():
        pytest.skip(f"{mine} belongs to somebody else, so torch cannot be kept there.")
    folder = mine / f"torch-{TORCH}-{sys.implementation.cache_tag}"
    if not folder.is_dir():
        partial = mine / f"{uuid.uuid4().hex}.partial"
        try:
            _install(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(folder)


def _install(folder: Path) -> None:
    # On Linux the plain version may be the CUDA build, with gigabytes of libraries; +cpu matches the CPU build alone.
    torch = f"torch=={TORCH}" if sys.platform == "darwin" else f"torch=={TORCH}+cpu"
    # Without dependencies, so that nothing of the project's environment comes a second time; these three it lacks.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run(
        [*command, torch, "sympy", "mpmath", "networkx"], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        pytest.skip(f"{torch} cannot be had here: {reason[-1] if reason else done.returncode}")


def test_the_contract_on_torch(torch_path: str) -> None:
    paths = [path for path in (torch_path, os.environ.get("PYTHONPATH", "")) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", *TESTS, "-k", "torch", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "torch is not installed" not in done.stdout
