"""Whole processes: what is imported, how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import sys
from dspy_toolkit.lm import connect
from dspy_toolkit.settings import load_settings
connection = connect(load_settings(home=sys.argv[1], lm={"max_tokens": 6000}))
"""

FINISH = """
print(connection.lm("Say hi", max_tokens=4), flush=True)
"""

WAIT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
from concurrent.futures import ThreadPoolExecutor
import time
pool = ThreadPoolExecutor(10)
lm = connection.lm
futures = [pool.submit(lm, f"Tell story {n}, and never stop.", cache=False) for n in range(20)]
from dspy_toolkit.lm.litellm.provider import find_engine
while find_engine(lm.model).stats().active < 1:
    time.sleep(0.05)
print("waiting", flush=True)
futures[0].result()
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_importing_is_cheap() -> None:
    code = """
import sys
import dspy_toolkit.lm
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.models import blas
from dspy_toolkit.lm import protocol as exchange
from dspy_toolkit.lm.models import hardware
from dspy_toolkit.lm.models import weights
from dspy_toolkit.lm.models import lease
from dspy_toolkit.lm.engine import prefixes
heavy = {"mlx", "mlx_lm", "litellm", "transformers", "dspy", "mlflow", "prefect", "pandas", "llguidance"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from dspy_toolkit.lm import connect
lazy = heavy - {"dspy", "litellm", "pandas"}  # DSPy itself leaves a stand-in for LiteLLM
assert not lazy & set(sys.modules), lazy & set(sys.modules)
import threading
assert threading.active_count() == 1
try:
    dspy_toolkit.lm.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
"""
    process = python(code)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_process_ends_cleanly_without_closing(model_home: Path) -> None:
    process = python(RUN + FINISH, str(model_home))
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert output.startswith("['")
    assert "terminate called" not in errors
    assert "PyTorch" not in errors


def test_ctrl_c_ends_a_process_that_waits_for_replies(model_home: Path) -> None:
    process = python(RUN + WAIT, str(model_home))
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "waiting\n":
        pytest.fail(f"{line!r} {process.communicate(timeout=10)}")
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - started < 15
    assert process.returncode in (1, 130, -signal.SIGINT), errors
    assert "KeyboardInterrupt" in errors
    assert "terminate called" not in errors
