"""The process that measures one cell: reads it from stdin, prints one line of JSON. Not meant to be started by hand."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("numpy", "mlx", "mlx-lm", "scikit-learn", "scikit-image", "matplotlib")
"""Whose versions stand beside the rows."""


def main(measure: str) -> None:
    """Measure the cell on stdin with `module:function`."""
    # What a library prints belongs to the log: the result is the only thing on stdout.
    answer = os.dup(1)
    os.dup2(2, 1)
    cell = json.load(sys.stdin)
    module, _, name = measure.partition(":")
    started = time.perf_counter()
    rows = getattr(import_module(module), name)(cell["context"], cell["configurations"], cell["seed"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "rows": rows,
        "cell_cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "cell_wall_seconds": round(time.perf_counter() - started, 3),
        # Linux counts kibibytes, macOS bytes.
        "peak_mb": round(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        print(json.dumps(found), file=out)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1])
