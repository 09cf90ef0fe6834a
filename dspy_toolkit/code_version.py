"""Which code makes a result: this library's own sources, Python, and the packages that have a say.

Fingerprints and cache keys hold these values, so that a `git pull`, an edit in an editable install or an upgraded package
makes a result anew; a manifest holds them to be read. Prefect is not among the packages: it says when a step runs, and no
more. The built-in projects are not among the sources: a project's files are in its own fingerprint.

Not covered: what changes after this process has read it (each value is taken once), the machine and its BLAS.
"""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dspy_toolkit.store import digest

LIBRARY = Path(__file__).resolve().parent
PACKAGES = (
    "dspy",
    "dspy-toolkit",
    "gepa",
    "litellm",
    "llguidance",
    "mlx",
    "mlx-lm",
    "mlx-vlm",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "pydantic",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


@functools.cache
def sources_sha256(folder: Path = LIBRARY, left_out: tuple[str, ...] = ("projects",)) -> str:
    """sha256 over the names and bytes of the .py files under `folder`; 20 ms for the whole library.

    Args:
        left_out: files and folders of `folder` that do not count.
    """
    files = {path.relative_to(folder): path for path in folder.rglob("*.py")}
    counted = sorted(name for name in files if name.parts[0] not in left_out)
    return digest(*(part for name in counted for part in (name.as_posix(), files[name].read_bytes())))


@functools.cache
def versions() -> dict[str, str]:
    """Python, the hash of this library's sources, and the PACKAGES that are installed: name → version."""
    found = {"python": platform.python_version(), "dspy-toolkit sources": sources_sha256()[:16]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a machine without mlx, where another engine answers
            continue
    return found
