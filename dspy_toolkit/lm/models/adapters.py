"""Adapters in `home/adapters`: each in a folder that is named by the hash of its content.

    home/adapters/HASH/adapters.safetensors     what training changed: `lora_a`, `lora_b` and, for DoRA, `m`
                       adapter_config.json      what mlx_lm needs to load it, and nothing else
                       adapter.json             where it comes from: base weights, rows, settings, losses, versions

HASH covers the first two files (`hashes.hash_adapter`): what the adapter computes, not when it was trained. A folder is
written under another name and renamed, so that one that is there is whole. `add_adapter` takes folders from elsewhere: only
these three files, within limits of size, and tensors of safetensors, which run no code when they are read.

Not covered: training them (`dspy_toolkit.finetuning`), running them (`lm.engine.adapters`), removing what no program needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dspy_toolkit.durable import new_folder
from dspy_toolkit.errors import ModelError, ModelNotFound
from dspy_toolkit.lm.models.hashes import ADAPTER, hash_adapter
from dspy_toolkit.store import Frozen

ORIGIN = "adapter.json"
LEAVES = ("lora_a", "lora_b", "m")
"""What an adapter's tensors are called, behind the name of the layer that they change."""
MOST_BYTES = {"adapters.safetensors": 4 * 2**30, "adapter_config.json": 2**16, ORIGIN: 2**20}
HEADER_BYTES = 16 * 2**20
"""Of a safetensors file, at most."""


class AdapterConfig(Frozen):
    """`adapter_config.json`, as mlx_lm reads it; no path is in it, so that its hash is the same everywhere."""

    fine_tune_type: Literal["lora", "dora"]
    num_layers: int
    """Blocks from the last one on; 0 or less: all."""
    lora_parameters: dict[str, Any]
    """`rank`, `scale`, `dropout`, and `keys` where not all linear layers are adapted."""


class AdapterOrigin(Frozen):
    """Where an adapter comes from."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the adapter: the name of its folder."""
    base: str
    """Name of the model that it was trained on."""
    base_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of that model's weights; on others it means nothing."""
    rows_sha256: str
    """Of the rows that it was trained on and validated with."""
    settings: dict[str, Any]
    """Of its training."""
    val_losses: tuple[tuple[int, float], ...] = ()
    """(step, mean loss of a scored token of the validation rows), each evaluation."""
    best_step: int
    """The step whose weights these are."""
    steps: int
    tokens: int
    """Tokens trained on, repetitions included."""
    seconds: float
    versions: dict[str, str | None]


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in `home/adapters`."""

    folder: Path
    origin: AdapterOrigin

    @property
    def sha256(self) -> str:
        """Of its content."""
        return self.origin.sha256

    @property
    def name(self) -> str:
        """What follows the + in a model's name."""
        return f"adapter-{self.sha256[:8]}"


def find_adapter(home: Path, sha256: str, base_sha256: str | None = None) -> StoredAdapter:
    """The adapter of a hash, checked.

    Args:
        sha256: of the adapter, at least its first eight hex digits.
        base_sha256: of the weights that it is to run on; None: of any.

    Raises:
        ModelNotFound: there is none, several begin so, or its files changed.
        ModelError: it was trained on other weights.
    """
    adapters = home / "adapters"
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ModelNotFound(f"{sha256!r} is no adapter's hash. Give at least its first eight hex digits.")
    found = sorted(path for path in adapters.glob(f"{sha256}*") if re.fullmatch("[0-9a-f]{64}", path.name))
    if len(found) != 1:
        there = "no adapter" if not found else f"{len(found)} adapters"
        raise ModelNotFound(
            f"{adapters} has {there} whose hash begins with {sha256}. Train it again, or import the bundle that holds it."
        )
    folder = found[0]
    origin = _origin(folder)
    if (now := hash_adapter(folder, home / "models" / "hashes.json")) != folder.name or origin.sha256 != now:
        raise ModelNotFound(
            f"The adapter in {folder} changed: its content has hash {now[:8]}, its description says {origin.sha256[:8]}. "
            "Remove the folder, and train or import it again."
        )
    if base_sha256 is not None and origin.base_sha256 != base_sha256:
        raise ModelError(
            f"The adapter {sha256[:8]} was trained on {origin.base}, whose weights have hash {origin.base_sha256[:8]}; "
            f"these have {base_sha256[:8]}. Run it on the weights that it was trained on, or train one on these."
        )
    return StoredAdapter(folder, origin)


def write_adapter(home: Path, config: AdapterConfig, tensors: bytes, origin: dict[str, Any]) -> StoredAdapter:
    """Keep an adapter that was trained here.

    Args:
        tensors: contents of its safetensors file.
        origin: fields of `AdapterOrigin`, without `sha256`.

    Raises:
        StoreError: it cannot be written.
    """
    contents = {"adapter_config.json": config.model_dump_json(indent=1).encode(), "adapters.safetensors": tensors}
    made = AdapterOrigin(sha256=_hash(contents), **origin)
    return _keep(home, made, {**contents, ORIGIN: made.model_dump_json(indent=1).encode()})


def add_adapter(home: Path, folder: Path) -> StoredAdapter:
    """Keep a copy of an adapter that comes from elsewhere, say out of a bundle.

    Args:
        folder: holds its three files, and may hold others, which are not copied.

    Raises:
        ModelError: a file is missing, too large, or not what it should be; or the content has another hash than
            `adapter.json` says.
        StoreError: it cannot be written.
    """
    contents = {name: _read(folder / name, most) for name, most in MOST_BYTES.items()}
    origin = _origin(folder)
    try:
        AdapterConfig.model_validate_json(contents["adapter_config.json"])
    except ValidationError as error:
        raise ModelError(
            f"{folder / ADAPTER[0]} is no adapter's: {_reason(error)}. Export the adapter again."
        ) from None
    _check_tensors(contents["adapters.safetensors"], folder)
    if (now := _hash(contents)) != origin.sha256:
        raise ModelError(
            f"The adapter in {folder} has hash {now[:8]}, and {ORIGIN} says {origin.sha256[:8]}: it was damaged or "
            "changed on its way. Export it again."
        )
    return _keep(home, origin, contents)


def _hash(contents: dict[str, bytes]) -> str:
    """As `hash_adapter`, of files that are not written yet."""
    hashed = "".join(f"{name}:{hashlib.sha256(contents[name]).hexdigest()}\n" for name in ADAPTER)
    return hashlib.sha256(hashed.encode()).hexdigest()


def _keep(home: Path, origin: AdapterOrigin, contents: dict[str, bytes]) -> StoredAdapter:
    folder = home / "adapters" / origin.sha256
    if not folder.exists():
        with new_folder(folder) as partial:
            for name, data in contents.items():
                (partial / name).write_bytes(data)
    return find_adapter(home, origin.sha256)


def _origin(folder: Path) -> AdapterOrigin:
    try:
        return AdapterOrigin.model_validate_json(_read(folder / ORIGIN, MOST_BYTES[ORIGIN]))
    except ValidationError as error:
        raise ModelError(f"{folder / ORIGIN} cannot be used: {_reason(error)}. Train or import it again.") from None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'it'}: {first['msg']}"


def _read(path: Path, most: int) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"{path} is missing, or not a plain file. Export the adapter again.")
        if (size := path.stat().st_size) > most:
            raise ModelError(f"{path} has {size} bytes; at most {most} are taken. Check where it comes from.")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}. Export the adapter again.") from error


def _check_tensors(data: bytes, folder: Path) -> None:
    """Refuse what is no safetensors file, or holds anything but an adapter's numbers."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(HEADER_BYTES, len(data) - 8):
            raise ValueError("its header is longer than it may be")
        header = json.loads(data[8 : 8 + length])
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        room = len(data) - 8 - length
        for name, entry in tensors.items():
            start, end = entry["data_offsets"]
            if name.rpartition(".")[2] not in LEAVES or entry["dtype"] not in ("F32", "F16", "BF16"):
                raise ValueError(f"{name!r} of type {entry['dtype']} is no tensor of an adapter")
            if not 0 <= start <= end <= room:
                raise ValueError(f"{name!r} lies outside the file")
        if not tensors:
            raise ValueError("it is empty")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{folder / ADAPTER[1]} is no adapter's: {error}. Export the adapter again.") from error
