"""`tests/test_bucket.py` with s3fs and moto, where they can be had; where not, the skip says why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.documentation.shell import ROOT
from tests.system.packages import bucket_packages

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_a_store_in_a_bucket() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([bucket_packages(), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "tests/test_bucket.py", "-rs", "-n0", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "2 passed" in done.stdout, done.stdout[-2000:]
