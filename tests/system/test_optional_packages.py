"""Tests that the ordinary suite leaves out where a package is missing, with that package; where it cannot be had, the skip says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.documentation.shell import ROOT
from tests.system.packages import bucket_packages, kept_packages

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def otlp_packages() -> str:
    return kept_packages("otlp", ["opentelemetry-exporter-otlp-proto-http"])


@pytest.mark.parametrize(
    ("test", "packages"),
    [
        ("tests/test_bucket.py::test_two_homes_share_a_search", bucket_packages),
        ("tests/test_bucket.py::test_what_fails_at_the_bucket_is_one_clear_error", bucket_packages),
        (
            "tests/tracking/test_traces.py"
            "::test_another_process_names_the_trace_that_it_is_a_part_of_and_tells_a_collector",
            otlp_packages,
        ),
        ("tests/serving/test_traces.py::test_a_traced_request_reaches_a_collector", otlp_packages),
    ],
    ids=["bucket", "bucket errors", "trace collector", "collector of requests"],
)
def test_with_its_package(test: str, packages: Callable[[], str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([packages(), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", test, "-rs", "-n0", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "1 passed" in done.stdout, done.stdout[-2000:]
