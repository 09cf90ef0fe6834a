"""Which BLAS is loaded, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dspy_toolkit.lm.models import blas

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


@linux
def test_without_one_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blas, "candidates", lambda: [("MKL", str(tmp_path / "libmkl_rt.so"))])
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    found = blas._preload()
    assert not found.optimised
    assert "libmkl_rt.so" in found.note
    assert "pip install mkl" in found.note


@linux
def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    found = blas._preload()
    assert (found.library, found.optimised) == ("reference", False)
    assert "before importing mlx" in found.note


def test_once_in_a_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    slow = blas.Blas(library="reference", path="", optimised=False, note="very slow")
    monkeypatch.setattr(blas, "_loaded", None)
    monkeypatch.setattr(blas, "_preload", lambda: slow)
    assert blas.preload() is blas.preload() is slow
    assert caplog.messages == ["very slow"]


@linux
def test_these_tests_have_it() -> None:
    """Some modules import MLX as they are collected: too late then, and the real model takes ten times as long."""
    if not blas.candidates():
        pytest.skip("no optimised BLAS on this machine")
    assert blas.preload().optimised


@linux
def test_it_comes_before_mlx_and_is_fast() -> None:
    """A fresh process: the product of two matrices that takes seconds with the reference BLAS."""
    if not blas.candidates():
        pytest.skip("no optimised BLAS on this machine")
    code = (
        "import time; from dspy_toolkit.lm.models.blas import preload; found = preload(); assert found.optimised, found;"
        "import mlx.core as mx; a = mx.ones((1024, 1024)); mx.eval(a); t = time.time(); mx.eval(a @ a);"
        "assert time.time() - t < 0.5, time.time() - t"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
