"""Loading a vision model into MLX with mlx-vlm: what it needs, its processor, its weights.

mlx-vlm comes with the extra `vision` and is imported when the first vision model is connected to. Weights stay in the
precision and the bits that they are stored in, also on a CPU. No code of a model's folder is run.

Not covered: adapters (LoRA); models that mlx-vlm runs and that hold no conversation (detectors, encoders, diffusion).
"""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import UNKNOWN_CONTEXT, MemoryPlan, plan_memory, token_bytes_of
from dspy_toolkit.lm.models.weights import VISION_INSTALL, Weights, names_vision
from dspy_toolkit.settings import LMSettings


def vision_installed() -> bool:
    """Whether mlx-vlm is there, without importing it."""
    return importlib.util.find_spec("mlx_vlm") is not None


def vision_version() -> str:
    """Of mlx-vlm; empty where it is not installed."""
    try:
        return version("mlx-vlm")
    except PackageNotFoundError:
        return ""


def reads_images(weights: Weights) -> bool:
    """Whether the vision engine is to answer for a model: a vision model without an adapter, where mlx-vlm is there."""
    return weights.adapter is None and vision_installed() and names_vision(weights.folder)


def check_vision(weights: Weights) -> None:
    """Refuse what cannot be loaded before anything is. Raises ModelError, with the next command."""
    if not vision_installed():
        raise ModelError(f"mlx-vlm is not installed, so {weights.name} cannot read images. {VISION_INSTALL}")
    if weights.adapter is not None:
        raise ModelError(
            f"{weights.name} has an adapter, which mlx_lm alone can read. Fuse it with `mlx_lm.fuse`, or leave it out."
        )
    if "model_file" in read_config(weights.folder):  # mlx-vlm would run it
        raise ModelError(
            f"{weights.folder / 'config.json'} names Python code of its own (model_file), which is not run. Use a model of an "
            "architecture that mlx-vlm has."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises ModelError when it cannot be read."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {error}. Fetch or convert the model again."
        ) from error


def plan_vision(weights: Weights, hardware: Hardware, settings: LMSettings, taken_bytes: int = 0) -> MemoryPlan:
    """The plan for one sequence at a time of a model that is not loaded yet; what an image takes in passing is not in it.

    Args: as `memory.plan_model`'s.

    Raises:
        ModelTooLarge: as `memory.plan_memory`.
        ModelError: config.json cannot be read.
    """
    config = read_config(weights.folder)
    total = sum(path.stat().st_size for path in weights.folder.glob("model*.safetensors"))
    context = {**config, **(config.get("text_config") or {})}.get("max_position_embeddings") or UNKNOWN_CONTEXT
    alone = settings.model_copy(update={"batch_size": 1})
    token = token_bytes_of(config, hardware.device)
    return plan_memory(hardware, total, token, alone, int(context), weights.name, taken_bytes)


def load_processor(weights: Weights) -> Any:
    """What makes a prompt and its images the model's input.

    Raises:
        ModelError: mlx-vlm does not know the architecture, or the processor cannot be read; the message carries its reason.
    """
    try:
        from mlx_vlm.utils import get_model_and_args, load_image_processor  # pyright: ignore[reportMissingImports]
        from mlx_vlm.utils import load_processor as load  # pyright: ignore[reportMissingImports]

        get_model_and_args(read_config(weights.folder))  # importing its module lets transformers know of its processor
        own = load_image_processor(weights.folder, trust_remote_code=False)
        # Said outright: mlx-vlm's own processors would allow it.
        processor = load(weights.folder, add_detokenizer=False, trust_remote_code=False)
    except Exception as error:  # isolation boundary: many libraries read a folder, each with errors of its own
        raise _cannot_load(weights, error) from error
    if own is not None:
        processor.image_processor = own
    return processor


def load_vision_model(weights: Weights) -> Any:
    """The model, on the thread that will use it.

    Raises:
        ModelError: mlx-vlm cannot load this folder, or what it loads holds no conversation; the message carries its reason.
    """
    try:
        from mlx_vlm.utils import load_model  # pyright: ignore[reportMissingImports]

        model = load_model(weights.folder)
    except Exception as error:  # isolation boundary: many libraries read a folder, each with errors of its own
        raise _cannot_load(weights, error) from error
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "language_model"):
        raise ModelError(f"mlx-vlm runs {weights.name}, but not as a model that answers. Choose another (lm.model).")
    return model


def _cannot_load(weights: Weights, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(f"mlx-vlm cannot load {weights.name} from {weights.folder}: {reason}.")
