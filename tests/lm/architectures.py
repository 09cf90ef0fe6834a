"""Tiny models of the architectures that people run: mlx_lm's own classes, with random weights.

They compute in milliseconds, and their tokenizer is the beginning of the embedded model's: what is compared is how the
engine treats their layers and caches (sliding windows, recurrent states, chunks, experts), not what they say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.lm.tiny import on_own_thread

VOCABULARY = 1000
"""Tokens of the embedded model's tokenizer that these models know."""

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
WINDOW = 32

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen3": {},
    "qwen3_next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "partial_rotary_factor": 0.5,
        "norm_topk_prob": True,
        "full_attention_interval": 2,
    },
    "gemma2": {"query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": True,
    },
    "llama": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "mistral": {"rope_theta": 1e6},
    "ministral3": {
        "rope_parameters": {
            "rope_theta": 1e6,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
            "rope_type": "default",
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": WINDOW,
    },
    "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "num_key_value_heads": 4},
    "phi3": {"partial_rotary_factor": 0.5},
    "smollm3": {},
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
LLAMA4: dict[str, Any] = {
    "text_config": {
        **SIZES,
        "attention_bias": False,
        "attention_chunk_size": WINDOW,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 96,
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "rope_scaling": None,
        "use_qk_norm": True,
        "model_type": "llama4_text",
    }
}


FAMILIES = (*ARCHITECTURES, "llama4")


def config_of(architecture: str) -> dict[str, Any]:
    """The config.json of a tiny model, but for the size of its vocabulary."""
    if architecture == "llama4":
        return {"model_type": "llama4", "eos_token_id": 2, **copy.deepcopy(LLAMA4)}
    return {**SIZES, **copy.deepcopy(ARCHITECTURES[architecture]), "model_type": architecture}


def write_architecture(
    folder: Path,
    architecture: str,
    *,
    tokenizer: Path,
    chat_template: str | None = None,
    marks: Sequence[str] = (),
    special: Sequence[str] = (),
) -> Path:
    """Write a model of random weights in mlx_lm's format into `folder`, which is returned.

    Args:
        tokenizer: a folder with the embedded model's tokenizer files, of which the first VOCABULARY tokens are taken.
        chat_template: by default the embedded model's own.
        marks: tokens to add; special: tokens to add that are special.
    """
    folder.mkdir(parents=True)
    size = _write_tokenizer(tokenizer, folder, chat_template, marks, special)
    config = config_of(architecture)
    for part in (config, config.get("text_config")):
        if part is not None:
            part["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    on_own_thread(lambda: _write_weights(folder, config))
    return folder


def _write_tokenizer(
    source: Path, folder: Path, chat_template: str | None, marks: Sequence[str], special: Sequence[str]
) -> int:
    """A tokenizer of the source's first tokens and the added ones; the number of all."""
    data = json.loads((source / "tokenizer.json").read_text())
    model = data["model"]
    ids = model["vocab"] = {piece: index for piece, index in model["vocab"].items() if index < VOCABULARY}
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= ids.keys()]
    for piece in (*marks, *special):
        ids[piece] = len(ids)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        data["added_tokens"].append({"id": ids[piece], "content": piece, "special": piece in special, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    config = json.loads((source / "tokenizer_config.json").read_text())
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(ids)


def _write_weights(folder: Path, config: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, arguments = _get_classes(config)
    shapes = {name: array.shape for name, array in tree_flatten(model_class(arguments.from_dict(config)).parameters())}
    draw = np.random.default_rng(0)
    arrays = {name: mx.array(_random(name, shape, draw)) for name, shape in sorted(shapes.items())}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})


def _random(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Weights with which the best two tokens are seldom near each other, and the reply hangs on the whole prompt."""
    if "norm" in name and name.endswith("weight"):
        last = name.endswith(("model.norm.weight", "embedding_norm.weight", "final_layernorm.weight"))
        of_heads = name.endswith(("q_norm.weight", "k_norm.weight", "q_layernorm.weight", "k_layernorm.weight"))
        return np.full(shape, 8.0 if last else 3.0 if of_heads else 1.0, np.float32)
    if name.endswith("embed_tokens.weight"):
        return draw.normal(0, 0.1, shape).astype(np.float32)
    if len(shape) < 2:
        return draw.normal(0, 0.3, shape).astype(np.float32)
    spread = (
        1.0 if name.endswith("lm_head.weight") else 2.0 / np.sqrt(np.prod(shape[1:] if len(shape) == 2 else shape[-1:]))
    )
    return draw.normal(0, spread, shape).astype(np.float32)
