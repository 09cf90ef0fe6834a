"""Hashes of models' and adapters' files, remembered by path, size and time: large files are read once."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ModelNotFound, StoreError
from dspy_toolkit.lm.models.gguf import hash_file

log = logging.getLogger(__name__)

ADAPTER = ("adapter_config.json", "adapters.safetensors")
"""What an adapter's folder must hold; checkpoints of its training beside them are ignored."""


def hash_adapter(folder: Path, remembered: Path) -> str:
    """sha256 over an adapter's weights and settings.

    Raises:
        ModelNotFound: the folder lacks one of them.
    """
    for name in ADAPTER:
        if not (folder / name).is_file():
            raise ModelNotFound(
                f"{folder} has no {name}, so it is no adapter of mlx_lm's. Train one with `mlx_lm.lora --adapter-path`, or "
                "leave out the + and what follows."
            )
    return hash_files([folder / name for name in ADAPTER], remembered)


def hash_files(files: list[Path], remembered: Path) -> str:
    """sha256 over the names and contents of `files`; `remembered` is the JSON file that knows those of unchanged ones."""
    try:
        known: dict[str, str] = dict(json.loads(remembered.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}  # damaged or not there: only time is lost
    total, changed = hashlib.sha256(), False
    for path in files:
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key], changed = hash_file(path), True
        total.update(f"{path.name}:{known[key]}\n".encode())
    if changed:
        try:
            write_file(remembered, json.dumps(known, indent=1).encode())
        except StoreError as error:
            log.warning("The hashes of %s cannot be remembered. %s", files[0].parent, error)
    return total.hexdigest()
