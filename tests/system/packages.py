"""Packages that some system tests need and the project does not: kept between runs, in a folder of this user's temporary ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

import pytest


def kept_packages(name: str, wanted: Sequence[str], free: Sequence[str] = (), *, alone: bool = False) -> str:
    """What PYTHONPATH must hold for the packages to be found; skips the test, with the reason, where they cannot be had.

    Args:
        name: of the folder.
        wanted: requirements. What they need in turn comes in the versions that are installed here.
        free: packages that may come in another version than the one installed here.
        alone: without what they need in turn, where all of it that is used is here.
    """
    here = {found.name.lower(): found.version for found in distributions() if not _editable(found)}
    limits = [f"{name}=={version}" for name, version in sorted(here.items()) if name not in free]
    mine = Path(tempfile.gettempdir()) / f"dspy-toolkit-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    if mine.stat().st_uid != os.getuid():
        pytest.skip(f"{mine} belongs to somebody else, so nothing can be kept there.")
    key = hashlib.sha256("\n".join([*wanted, *limits, sys.version]).encode()).hexdigest()[:12]
    folder = mine / f"{name}-{key}"
    if not folder.is_dir():
        partial = mine / f"{uuid.uuid4().hex}.partial"
        limit_file = mine / f"{partial.name}.txt"
        limit_file.write_text("\n".join(limits))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--target",
            str(partial),
        ]
        command += [*["--no-deps"] * alone, "--constraint", str(limit_file), *wanted]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"{' '.join(wanted)} cannot be had here: {done.stderr.strip()[-300:]}")
            partial.rename(folder)
        finally:
            limit_file.unlink()
            shutil.rmtree(partial, ignore_errors=True)
    return str(folder)


def bucket_packages() -> str:
    """PYTHONPATH for s3fs, moto's S3-compatible server and PostgreSQL's driver."""
    # s3fs stands on aiobotocore, which takes a certain version of these alone.
    amazon = ("boto3", "botocore", "s3transfer")
    return kept_packages("bucket", ("s3fs>=2026", "moto[server]", "psycopg[binary]"), free=amazon)


def vision_packages() -> str:
    """PYTHONPATH for mlx-vlm; what it brings along for audio, video, training and serving is not used."""
    return kept_packages("vision", ["mlx-vlm>=0.7"], alone=True)


def _editable(found: object) -> bool:
    return getattr(found, "name", "").startswith("dspy-toolkit") or getattr(found, "version", None) is None
