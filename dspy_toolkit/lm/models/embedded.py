"""The embedded model: SmolLM2-135M-Instruct, from the GGUF that `gguf` finds.

It is converted once into mlx_lm's format. GGUF's Q4_1 blocks are MLX's affine 4-bit groups of 32, so no weight changes.
`origin.json` is written last, with the hashes of the other files: where it is there and they match, the rest is whole.

Not covered: any other GGUF.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from dspy_toolkit.durable import new_folder, set_aside
from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.models.gguf import FETCH, FILE, find_gguf, hash_file
from dspy_toolkit.locks import held

EMBEDDED = "smollm2-135m"
CONVERT_SECONDS = 600.0
"""How long to wait while another process converts; it takes seconds."""

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_embedded(models: Path) -> Path:
    """The embedded model's folder under `models`, converted from its GGUF when it is missing or damaged.

    Raises:
        ModelNotFound: its file has not been fetched.
        ModelError: its file cannot be read.
        StoreError: the folder cannot be written.
    """
    folder = models / EMBEDDED
    if _damage(folder) is None:
        return folder
    # One process converts, the others wait and find what it made: nobody removes a folder that another one reads.
    with held(models / f"{EMBEDDED}.lock", CONVERT_SECONDS):
        if (why := _damage(folder)) is None:
            return folder
        gguf = find_gguf()
        if folder.exists():
            set_aside(folder, why)
        with new_folder(folder) as partial:
            _on_own_thread(gguf, partial)
            files = {path.name: hash_file(path) for path in sorted(partial.iterdir())}
            (partial / "origin.json").write_text(json.dumps({"source": FILE, "files": files}, indent=1))
    return folder


def _damage(folder: Path) -> str | None:
    """What is wrong with a converted model; None when it is as it was written."""
    try:
        known: dict[str, str] = json.loads((folder / "origin.json").read_text())["files"]
        changed = [name for name, sha256 in known.items() if hash_file(folder / name) != sha256]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return f"{', '.join(changed)} changed" if changed else None if known else "it names no files"


def _on_own_thread(gguf: Path, folder: Path) -> None:
    """Convert on a thread that cleans up after itself: MLX's streams must not outlive the thread that made them."""

    def convert() -> None:
        from dspy_toolkit.lm.models.blas import preload

        preload()
        import mlx.core as mx

        try:
            _convert(gguf, folder)
        finally:
            mx.clear_streams()

    with ThreadPoolExecutor(1, thread_name_prefix=f"convert {EMBEDDED}") as pool:
        try:
            pool.submit(convert).result()
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{gguf} cannot be converted: {error}. Run `{FETCH}`.") from error


def _convert(gguf: Path, folder: Path) -> None:
    import mlx.core as mx

    with mx.stream(mx.cpu):
        tensors, meta = cast("tuple[dict[str, Any], dict[str, Any]]", mx.load(str(gguf), return_metadata=True))
        weights: dict[str, Any] = {}
        for name, tensor in tensors.items():
            parts = name.split(".")
            if parts[0] == "blk":
                weights[f"model.layers.{parts[1]}.{GGUF_NAMES[parts[2]]}.{parts[3]}"] = tensor
            else:
                weights[f"{GGUF_NAMES[parts[0]]}.{parts[1]}"] = tensor
        try:
            mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        except RuntimeError as error:  # a full disk is no fault of the GGUF
            raise OSError(str(error)) from error
    (folder / "config.json").write_text(json.dumps(_config(meta), indent=1))
    _write_tokenizer(meta, folder)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    def number(key: str) -> Any:
        return meta[f"llama.{key}"].item()

    return {
        "model_type": "llama",
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "rope_theta": number("rope.freq_base"),
        # GGUF interleaves the two halves of each rotary pair in the query and key weights.
        "rope_traditional": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": number("context_length"),
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"].item(),
        # Q4_1 blocks are MLX's affine 4-bit, group 32; the embedding is stored in 8 bits.
        "quantization": {"group_size": 32, "bits": 4, "model.embed_tokens": {"group_size": 32, "bits": 8}},
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    tokens = meta["tokenizer.ggml.tokens"]
    special_type = 3  # GGUF's token_type of a control token
    specials = [
        t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"].tolist(), strict=True) if kind == special_type
    ]
    added = [
        {
            "id": tokens.index(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in specials
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    eos = tokens[meta["tokenizer.ggml.eos_token_id"].item()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"].item(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
