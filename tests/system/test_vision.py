"""The vision engine on mlx-vlm, where that can be had; where not, the skip says why.

mlx-vlm is no part of the ordinary environment: it is kept in a folder of its own and put on the path of one process.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.documentation.shell import ROOT
from tests.system.packages import vision_packages

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_images_on_mlx_vlm() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([vision_packages(), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "tests/lm/vision", "-rs", "-n0", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
