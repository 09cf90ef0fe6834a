"""Loading a model folder into PyTorch, where MLX cannot run: on CUDA, MPS or the CPU.

A folder in Hugging Face's format is loaded unchanged. A folder that mlx_lm quantized is expanded: each affine group
becomes scale * value + offset in the type of its scale, as MLX expands it, bit for bit. Where its config says
`rope_traditional`, the query and key rows are put back from interleaved rotary pairs into two halves, as Hugging Face's
models have them. Only torch, transformers and safetensors are needed; MLX is not.

On the CPU all is float32; on an accelerator the weights keep the type that they are stored in.

Not covered: quantizations other than affine, models that bring their own Python code, adapters (LoRA).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import ModelError, ModelTooLarge
from dspy_toolkit.lm.models.hardware import machine_memory
from dspy_toolkit.lm.models.weights import Weights, needed_bytes

INSTALL = "Install it: `pip install 'dspy-toolkit[torch]'`."
WORKING_BYTES = 600 * 2**20
"""Room for the attention cache and activations of one request, beside the weights."""
ROTATED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
"""Parameters whose rows are the rotary pairs."""


def calm_threads() -> None:
    """Let torch's CPU threads sleep while they wait for each other. To be called before torch or transformers loads."""
    # By default they spin: beside other busy processes a token then takes twenty times as long (1.8 s instead of 0.09 s
    # with two threads, on two cores that three other processes were using). The variable belongs to torch's OpenMP,
    # which reads it when it is loaded, and importing transformers loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def import_torch() -> Any:
    """Torch, after `calm_threads`."""
    calm_threads()
    import torch  # pyright: ignore[reportMissingImports]

    return torch


def choose_device() -> str:
    """The best device that torch has: `cuda`, `mps` or `cpu`."""
    torch = import_torch()
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_torch_fits(weights: Weights, device: str, limit_gb: float | None) -> None:
    """Refuse a model that the memory of `device` cannot hold, before anything is loaded.

    Raises:
        ModelTooLarge: with both numbers.
    """
    torch = import_torch()
    need = needed_bytes(weights.folder, "cpu") // (1 if device == "cpu" else 2) + WORKING_BYTES
    have = torch.cuda.mem_get_info()[0] if device == "cuda" else machine_memory()[1]
    if limit_gb is not None:
        have = int(limit_gb * 2**30)
    if need > have:
        what = "are available" if limit_gb is None else "are allowed by lm.memory_limit_gb"
        raise ModelTooLarge(
            f"{weights.name} needs about {need / 2**30:.1f} GB in torch on this machine's {device}, and "
            f"{have / 2**30:.1f} GB {what}. Close something, or choose a smaller model (lm.model)."
        )


def load_torch_model(weights: Weights, device: str) -> Any:
    """The model, in evaluation mode on `device`.

    Raises:
        ModelError: transformers cannot load this folder; the message carries its reason.
    """
    torch = import_torch()
    try:
        config = json.loads((weights.folder / "config.json").read_text())
        with _quietly():
            model, found = _load(weights.folder, config, torch.float32 if device == "cpu" else "auto")
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch cannot load {weights.name} from {weights.folder}: {reason}.") from error
    if missing := sorted({*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])}):
        raise ModelError(
            f"torch cannot load {weights.name} from {weights.folder}: {len(missing)} parameters are missing or of "
            f"another shape, {missing[0]} for one."
        )
    return model.to(device).eval()


def free_memory(device: str | None) -> None:
    """Give the accelerator's memory that torch keeps for reuse back to the system."""
    if device in ("cuda", "mps"):
        torch = import_torch()
        (torch.cuda if device == "cuda" else torch.mps).empty_cache()


def _load(folder: Path, config: dict[str, Any], dtype: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch = import_torch()
    quantization = config.pop("quantization", None)
    if quantization is None and not config.get("rope_traditional"):
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    config.pop("quantization_config", None)  # mlx_lm's copy of the same; transformers takes it for one of its own
    parsed = AutoConfig.for_model(**config)
    with torch.device("meta"):  # only to learn which class it is
        kind: Any = type(AutoModelForCausalLM.from_config(parsed))
    tensors = dict(_expand(folder, quantization or {}))
    if config.get("rope_traditional"):
        width = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
        tensors = {name: _halve(each, width) if name.endswith(ROTATED) else each for name, each in tensors.items()}
    return kind.from_pretrained(None, config=parsed, state_dict=tensors, dtype=dtype, output_loading_info=True)


def _expand(folder: Path, quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every parameter of the folder's weight files, quantized ones expanded."""
    from safetensors import safe_open

    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                module, _, part = name.rpartition(".")
                quantized = f"{module}.scales" in names
                if quantized and part in ("scales", "biases"):
                    continue
                tensor = file.get_tensor(name)
                if quantized and part == "weight":
                    own = quantization.get(module)
                    mode = {**quantization, **own} if isinstance(own, Mapping) else quantization
                    if f"{module}.biases" not in names or mode.get("mode", "affine") != "affine":
                        raise ValueError(
                            f"{module} is quantized in mode {mode.get('mode')!r}; only affine is supported"
                        )
                    tensor = expand_affine(
                        tensor, file.get_tensor(f"{module}.scales"), file.get_tensor(f"{module}.biases"), mode["bits"]
                    )
                yield name, tensor


def expand_affine(packed: Any, scales: Any, offsets: Any, bits: int) -> Any:
    """Undo MLX's affine quantization.

    Args:
        packed: uint32, shape (..., columns * bits / 32): the values one after another, the lowest bits first.
        scales, offsets: shape (..., groups).
        bits: of one value, 2 to 8.

    Returns:
        shape (..., columns), in the type of the scales.
    """
    torch = import_torch()
    octets, mask = packed.contiguous().view(torch.uint8), (1 << bits) - 1
    if 8 % bits == 0:
        values = torch.stack([(octets >> shift) & mask for shift in range(0, 8, bits)], dim=-1)
    else:  # eight values lie in `bits` bytes
        words = octets.unflatten(-1, (-1, bits)).to(torch.int64)
        joined = sum(words[..., index] << (8 * index) for index in range(bits))
        values = torch.stack([(joined >> (bits * index)) & mask for index in range(8)], dim=-1)
    groups = values.flatten(-2).unflatten(-1, (scales.shape[-1], -1)).to(scales.dtype)
    # Product and sum are each rounded to the scale's type, as MLX does it.
    return (groups * scales[..., None] + offsets[..., None]).flatten(-2)


def _halve(rows: Any, width: int) -> Any:
    """Rows of heads of `width`, from pairs (0 1, 2 3, …) to two halves (0 2 …, 1 3 …)."""
    return rows.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing on the terminal while transformers loads: no progress bar, and no report of what our own error says."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
