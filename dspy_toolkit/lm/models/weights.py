"""Finding a model's weights, naming them by their content, and loading them.

A model is `smollm2-135m` (embedded: its GGUF is fetched once, and converted once into `home/models`), a local folder in
mlx_lm's format, or a hub id. `MODEL+FOLDER` is that model with an adapter, as mlx_lm's training writes them (LoRA,
DoRA, or all weights of some layers); `MODEL+adapter-HASH` is the same with one of `home/adapters`. The name in programs,
caches and manifests ends in a hash of the weights, so that other weights under the same name are another model.

On the CPU, quantized weights are expanded to float32 when they are loaded, since MLX has no fast quantized product
there, and an adapter is added into them. Elsewhere it stays beside them: adding it would round it to the weights' few
bits.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_toolkit.durable import make_home
from dspy_toolkit.errors import ModelError, ModelNotFound, StoreError
from dspy_toolkit.lm.models import cpu, fixes
from dspy_toolkit.lm.models.adapters import find_adapter
from dspy_toolkit.lm.models.embedded import EMBEDDED, convert_embedded
from dspy_toolkit.lm.models.hashes import ADAPTER, hash_adapter, hash_files

PREFIX = "mlx/"
FILES = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
"""What a model is made of: fetched from a hub, and hashed, since a library that loads it may read any of them."""
NO_SAY = "origin.json"
"""Of these, what says only where a converted model came from."""
VISION_KEYS = ("vision_config", "mm_vision_tower", "img_processor")
"""Entries of config.json that describe the part of a model which reads images."""
VISION_INSTALL = "Install it: `pip install 'dspy-toolkit[vision]'`."


@dataclass(frozen=True)
class Weights:
    """A model on disk, in mlx_lm's format."""

    name: str
    """`mlx/NAME@HASH` or `mlx/NAME+ADAPTER@HASH`, HASH being eight hex digits of `sha256`."""
    folder: Path
    sha256: str
    """Over the contents of the model's files and the adapter's."""
    adapter: Path | None = None
    """Folder of the adapter, where there is one."""
    adapters: Path | None = None
    """`home/adapters`, where adapters are that a request may name by their hash."""


def find_weights(model: str, home: Path) -> Weights:
    """Find (and for the embedded model, convert) the weights of `model`.

    Args:
        model: `mlx/smollm2-135m`, `mlx/FOLDER` or `mlx/HUB-ID`, with or without `+ADAPTER-FOLDER` or `+adapter-HASH`,
            with or without `@HASH`.
        home: settings' home; converted weights and remembered hashes go into `home/models`, adapters are looked for in
            `home/adapters`.

    Raises:
        ModelNotFound: no such folder, hub id, package or adapter; or the weights no longer have the hash that was asked
            for.
        ModelError: the adapter of `home/adapters` was trained on other weights.
    """
    full, wanted = _split_name(model.removeprefix(PREFIX))
    stored = _stored(full)
    name, adapter = (stored[0], None) if stored else split_adapter(full)
    with suppress(StoreError):  # what writes there says it
        make_home(home)
    remembered = home / "models" / "hashes.json"
    if name == EMBEDDED:
        folder = convert_embedded(home / "models")
    elif name and _is_folder(name):
        folder = Path(name).expanduser().resolve()
        name = folder.name
    else:
        folder = _from_hub(name)
    sha256 = hash_weights(folder, remembered)
    if stored:
        found = find_adapter(home, stored[1], sha256)
        adapter, adapter_name = found.folder, found.name
    elif adapter is not None:
        adapter_name = adapter.name
    else:
        adapter_name = ""
    if adapter is not None:
        sha256 = hashlib.sha256(f"{sha256} {hash_adapter(adapter, remembered)}".encode()).hexdigest()
        name = f"{name}+{adapter_name}"
    if wanted and not sha256.startswith(wanted):
        raise ModelNotFound(
            f"The weights of {name} have hash {sha256[:8]}, not {wanted}. "
            f"Use {PREFIX}{full} for what is there now, or bring the old weights back."
        )
    return Weights(f"{PREFIX}{name}@{sha256[:8]}", folder, sha256, adapter, (home / "adapters").resolve())


def _stored(name: str) -> tuple[str, str] | None:
    """(model, the adapter's hash) of `MODEL+adapter-HASH`; None for any other name, and where that is a folder here."""
    model, _, adapter = name.rpartition("+")
    found = re.fullmatch("adapter-([0-9a-f]{8,64})", adapter)
    return None if not found or not model or _is_folder(adapter) or _is_folder(name) else (model, found[1])


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def split_adapter(name: str) -> tuple[str, Path | None]:
    """(model, the adapter's folder or None) of a name without `mlx/` and hash.

    A folder may have a + of its own in its name: what is there decides. Raises ModelNotFound when no adapter is there.
    """
    if "+" not in name or _is_folder(name):
        return name, None
    parts = name.split("+")
    splits = [("+".join(parts[:n]), "+".join(parts[n:])) for n in range(1, len(parts))]
    there = [(model, path) for model, path in splits if path and _is_folder(path)]
    if not there:
        raise ModelNotFound(
            f"The adapter {splits[0][1]!r} of {PREFIX}{name} is not a folder here. Give the folder that mlx_lm's training "
            f"wrote {ADAPTER[1]} into, as {PREFIX}MODEL+FOLDER, or the hash of one in home/adapters, as "
            f"{PREFIX}MODEL+adapter-HASH."
        )
    # The first whose model is a folder or the embedded one; a hub id has no +.
    known = [each for each in there if each[0] == EMBEDDED or _is_folder(each[0])]
    model, path = (known or there)[0]
    return model, Path(path).expanduser().resolve()


def _split_name(model: str) -> tuple[str, str]:
    """(name, hash or nothing); a folder may have an @ of its own in its name."""
    name, _, wanted = model.rpartition("@")
    return (name, wanted) if re.fullmatch("[0-9a-f]{8,64}", wanted) and name else (model, "")


def _from_hub(name: str) -> Path:
    if name.count("/") != 1:
        raise ModelNotFound(
            f"No model {name!r}: it is not {EMBEDDED} (embedded), not a folder here, and not a hub id such as "
            "mlx-community/Qwen3-4B-4bit. Set lm.model (DSPY_TOOLKIT_LM__MODEL=mlx/…) to one of these."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFound(
            f"Model {name!r} is not in the local hub cache and could not be fetched ({reason}). "
            f"Check the name and the network, give a local folder, or use {PREFIX}{EMBEDDED}."
        ) from error


def hash_weights(folder: Path, remembered: Path) -> str:
    """sha256 over the files of a model. Their hashes are remembered by path, size and time.

    Raises:
        ModelNotFound: the folder lacks weights or config.json.
    """
    files = sorted(
        path for path in folder.iterdir() if path.name != NO_SAY and any(path.match(pattern) for pattern in FILES)
    )
    for wanted in ("model*.safetensors", "config.json"):
        if not any(path.match(wanted) for path in files):
            raise ModelNotFound(f"{folder} has no {wanted}. Convert the model with `mlx_lm.convert` first.")
    return hash_files(files, remembered)


def names_vision(folder: Path) -> bool:
    """Whether config.json names a vision model; False where it cannot be read, which is for who loads it to say."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return any(config.get(key) for key in VISION_KEYS)
    except (OSError, ValueError, AttributeError):
        return False


def needed_bytes(folder: Path, device: str) -> int:
    """Bytes that the weights will take in memory on `device` (`metal`, `cuda`, `cpu`)."""
    total = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    if device != "cpu":
        return total
    try:
        config = json.loads((folder / "config.json").read_text())
        quantization = config.get("quantization") or config.get("quantization_config") or {}
        # Expanded to float32: a 4-bit weight with its scale and offset takes ~5 bits on disk, a 16-bit one 16.
        bits = quantization["bits"] + 1 if "bits" in quantization else 16
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {error}. Fetch or convert the model again."
        ) from error
    return int(total * 32 / bits)


def load_model(weights: Weights, device: str, *, differentiable: bool = False) -> tuple[Any, Any]:
    """Load (model, tokenizer) with mlx_lm, on the thread that will use them.

    Args:
        differentiable: leave out the functions of `cpu`, whose gradients are wrong: for training.

    Raises:
        ModelError: mlx_lm cannot load this folder, or the adapter is not one of this model's; the message carries the
            reason.
    """
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import dequantize_model, load

    try:
        # No code of the folder's: transformers, where it is not told, would ask at the terminal.
        model, tokenizer = load(str(weights.folder), {"trust_remote_code": False}, trust_remote_code=False)[:2]
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        advice = "Fetch or convert the model again."
        if names_vision(weights.folder):
            advice = f"It is a vision model, which mlx-vlm can load. {VISION_INSTALL}"
        raise ModelError(f"mlx_lm cannot load {weights.name} from {weights.folder}: {error}. {advice}") from error
    assert isinstance(model, nn.Module)
    fixes.install(model)
    if device == "cpu":
        model = dequantize_model(model)
        _to_float32(model)
    if weights.adapter is not None:
        _add_adapter(model, weights.adapter, into_weights=device == "cpu")
    if device == "cpu":
        _to_float32(model)
        if not differentiable:
            cpu.install(model)
    mx.eval(model.parameters())
    return model, tokenizer


def _to_float32(model: Any) -> None:
    import mlx.core as mx
    from mlx.utils import tree_map

    model.update(
        tree_map(lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    )


def _add_adapter(model: Any, folder: Path, *, into_weights: bool) -> None:
    from mlx.utils import tree_unflatten
    from mlx_lm.utils import load_adapters

    try:
        load_adapters(model, str(folder))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ModelError(
            f"The adapter in {folder} cannot be put on this model: {reason}. Use the model that it was trained on."
        ) from error
    model.eval()  # no dropout
    if into_weights:
        fused = [
            (name, module.fuse(dequantize=True)) for name, module in model.named_modules() if hasattr(module, "fuse")
        ]
        model.update_modules(tree_unflatten(fused))
