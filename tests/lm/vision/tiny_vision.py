"""Tiny vision models with random weights, of mlx-vlm's own classes: they take milliseconds to write and to run.

    folder = write_vision(tmp_path / "m", "qwen2_vl", tokenizer=embedded_folder)

- `qwen2_vl`: positions of three dimensions, as many tokens as an image has patches; its template lies beside the tokenizer;
- `smolvlm`: SmolVLM's marks around an image of four tokens, and a template that reads no texts, lists of parts alone.

Both have the embedded model's tokenizer with the marks of their images added, and are in float32.
"""

from __future__ import annotations

import base64
import copy
import json
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.lm.tiny import on_own_thread

Kind = Literal["qwen2_vl", "smolvlm"]

PARTS = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKS: dict[str, list[str]] = {
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "smolvlm": ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"],
}
TEMPLATES = {
    "qwen2_vl": PARTS.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>"),
    "smolvlm": PARTS.replace("MARK", "<image>"),
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    "smolvlm": {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "image_size": 56,
        "patch_size": 14,
    },
}
IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12544},
    "smolvlm": {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": False,
        "size": {"longest_edge": 56},
        "max_image_size": {"longest_edge": 56},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


def needs_vision() -> None:
    """Skip the test where the extra `vision` is not installed."""
    from dspy_toolkit.lm.models.weights import VISION_INSTALL
    from dspy_toolkit.lm.vision.weights import vision_installed

    if not vision_installed():
        pytest.skip(f"mlx-vlm is not installed. {VISION_INSTALL} `make test-system` brings it, for one process.")


def picture(
    red: int = 200, green: int = 30, blue: int = 30, size: tuple[int, int] = (40, 30), kind: str = "PNG"
) -> bytes:
    """A file: a stripe of one colour on noise, so that two of them differ in every patch."""
    from PIL import Image

    pixels = np.random.default_rng(red).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[::2] = (red, green, blue)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def uri(file: bytes, kind: str = "png") -> str:
    """The address of a file, as `dspy.Image` makes it."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def write_vision(folder: Path, kind: Kind, *, tokenizer: Path, seed: int = 0) -> Path:
    """Write a model. Args: tokenizer: folder of the embedded model, whose tokenizer it has."""
    folder.mkdir()
    ids = _write_tokenizer(folder, tokenizer, MARKS[kind])
    end = json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"][2]["id"]  # <|im_end|>
    text = {"vocab_size": max(ids.values()) + 1, **SIZES}
    config: dict[str, Any] = {"model_type": kind, "eos_token_id": end, "vision_config": ENCODERS[kind]}
    if kind == "qwen2_vl":
        names = dict(zip(("vision_start", "vision_end", "image", "video"), MARKS[kind], strict=True))
        config |= {f"{name}_token_id": ids[mark] for name, mark in names.items()}
        config |= text | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    else:
        config |= {"text_config": text | {"model_type": "llama"}, "scale_factor": 2, "image_token_id": ids["<image>"]}
        (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 4}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES[kind]))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[kind]}))
    on_own_thread(lambda: _write_weights(folder, config, seed))
    return folder


def _write_tokenizer(folder: Path, source: Path, marks: list[str]) -> dict[str, int]:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    ids = {**tokenizer["model"]["vocab"], **{each["content"]: each["id"] for each in tokenizer["added_tokens"]}}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for mark in marks:
        ids[mark] = max(ids.values()) + 1
        tokenizer["added_tokens"].append({"id": ids[mark], "content": mark, "special": True, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ids


def _write_weights(folder: Path, config: dict[str, Any], seed: int) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    wanted = copy.deepcopy(config)
    module, _ = get_model_and_args(wanted)
    made = update_module_configs(module.ModelConfig.from_dict(wanted), module, wanted, ["text", "vision"])
    draw = np.random.default_rng(seed)
    weights = {
        name: mx.array(_random(name, array.shape, draw))
        for name, array in tree_flatten(module.Model(made).parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def _random(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        last = name in ("language_model.model.norm.weight", "language_model.norm.weight")  # sets the temperature
        size = 8.0 if last else 0.0 if name.endswith("bias") else 1.0
        return np.full(shape, size, np.float32)
    # Small beside what the layers add: the reply hangs on the whole prompt, not on its last token.
    spread = 0.1 if "embed" in name and "patch" not in name else 2.0 / np.sqrt(np.prod(shape[1:]))
    return draw.normal(0, 1.0 if name.endswith("lm_head.weight") else spread, shape).astype(np.float32)
