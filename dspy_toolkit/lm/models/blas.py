"""An optimised BLAS for MLX's CPU backend.

MLX's Linux wheel links the reference BLAS, which is about a hundred times slower than an optimised one. A symbol that
the process has already wins over one that the wheel would load, so the optimised library is loaded first, with global
symbols. macOS needs nothing: MLX uses Metal and Accelerate there.

`preload` must run before the first `import mlx.core`; afterwards it changes nothing and says so.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import sys
from pathlib import Path

from dspy_toolkit.store import Frozen

log = logging.getLogger(__name__)

INSTALL = "Install one: `apt install libopenblas0-pthread` (or your system's OpenBLAS), or `pip install mkl` on x86-64."


class Blas(Frozen):
    """The BLAS that MLX's CPU backend uses."""

    library: str
    """`OpenBLAS`, `MKL`, `Accelerate`, or `reference`."""
    path: str
    optimised: bool
    note: str


_loaded: Blas | None = None


def candidates() -> list[tuple[str, str]]:
    """(name, path) of the optimised libraries on this machine, best first."""
    found: list[tuple[str, str]] = []
    if name := ctypes.util.find_library("openblas"):
        found.append(("OpenBLAS", name))
    for path in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        found.append(("MKL", str(path)))
    return found


def preload() -> Blas:
    """Load the best BLAS there is, once in a process, and say which it is. Never raises: a slow BLAS still works."""
    global _loaded
    if _loaded is None:
        _loaded = _preload()
        if not _loaded.optimised:
            log.warning("%s", _loaded.note)
    return _loaded


def _preload() -> Blas:
    if sys.platform == "darwin":
        return Blas(library="Accelerate", path="", optimised=True, note="part of macOS")
    if "mlx.core" in sys.modules:
        return Blas(
            library="reference",
            path="",
            optimised=False,
            note="mlx.core was imported before dspy_toolkit.lm, so MLX keeps its reference BLAS, which is very slow. "
            "Call dspy_toolkit.lm.connect before importing mlx.",
        )
    refused = []
    for name, path in candidates():
        try:
            # MKL's idle threads spin for 200 ms by default, on cores that something else could use.
            os.environ.setdefault("KMP_BLOCKTIME", "1")
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            refused.append(f"{path}: {error}")
            continue
        return Blas(library=name, path=path, optimised=True, note="loaded before MLX")
    why = f" ({'; '.join(refused)})" if refused else ""
    return Blas(
        library="reference",
        path="",
        optimised=False,
        note=f"No optimised BLAS was found{why}: MLX on this CPU will be about a hundred times slower. {INSTALL}",
    )
