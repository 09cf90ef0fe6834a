"""Tiny models with random weights, for what the embedded one cannot show: they take milliseconds to write and to run.

    folder = write_tiny(tmp_path / "m", "sliding", tokenizer=embedded_folder)

Kinds, all in float32 and with the embedded model's tokenizer:

- `llama`: caches that can be trimmed;
- `sliding`: every other layer sees WINDOW tokens (`RotatingKVCache`: cannot be trimmed once it is full);
- `hybrid`: short convolutions beside attention (LFM2; `ArraysCache`: cannot be trimmed at all).

Templates: `plain` is the embedded model's own; `thinking` gives a Qwen-like one with `<think>`, `enable_thinking` and
`<tool_call>`; `opened` is the same, but every prompt ends inside `<think>`; `tools` has tool calls and no thinking.

`says` writes a model that says just that, whatever it is asked: each piece becomes a token of its own. It shows how a reply
with thinking or tool calls is taken apart; its keys and values matter to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dspy_toolkit.lm.models.weights import find_weights, load_model

Kind = Literal["llama", "sliding", "hybrid"]
Template = Literal["plain", "thinking", "opened", "tools"]

WINDOW = 32
"""Tokens that a sliding layer sees."""
CONTEXT = 2048
HIDDEN = 64

SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    "sliding": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": WINDOW,
    },
    "hybrid": {
        "model_type": "lfm2",
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": HIDDEN,
        "block_ff_dim": 96,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * 2,
    },
}

CHAT = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for tool_call in message.tool_calls or [] %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + (tool_call.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}OPENING{%- endif %}"""
OPENINGS = {
    "thinking": "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
    "opened": "{{- '<think>\\n' }}",
    "tools": "",
}
MARKS = {
    "plain": (),
    "thinking": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    "opened": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    "tools": ("<tool_call>", "</tool_call>"),
}


def write_tiny(
    folder: Path,
    kind: Kind = "llama",
    *,
    tokenizer: Path,
    template: Template = "plain",
    says: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a model in mlx_lm's format into `folder`, which is returned; `find_weights(f"mlx/{folder}", home)` finds it.

    Args:
        tokenizer: a folder with the embedded model's tokenizer files.
        says: pieces, all different, that are the model's only reply (kind `llama`); without them the weights are random.
        seed: of the weights.
    """
    folder.mkdir(parents=True)
    marks = MARKS[template]
    added = [*marks, *(piece for piece in says if piece not in marks)]
    ids = _write_tokenizer(tokenizer, folder, added, template)
    config = {**SIZES, **KINDS[kind], "vocab_size": max(ids.values()) + 1}
    (folder / "config.json").write_text(json.dumps(config))
    on_own_thread(lambda: _write_weights(folder, config, [ids[piece] for piece in says], seed))
    return folder


def write_lora(folder: Path, model: Path, *, zero: bool = False, scale: float = 20.0, seed: int = 0) -> Path:
    """Write a LoRA adapter of rank 4 for the query and value projections of `model`'s last two layers into `folder`.

    Args:
        zero: leave its second matrix 0, as it is before training: then it changes nothing.
    """
    config = json.loads((model / "config.json").read_text())
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    keys_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    draw = np.random.default_rng(seed)
    weights = {}
    for layer in range(layers - 2, layers):
        for name, size in (("q_proj", width), ("v_proj", keys_width)):
            stem = f"model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_a"] = draw.normal(0, 0.3, (width, 4)).astype(np.float32)
            weights[f"{stem}.lora_b"] = np.zeros((4, size), np.float32) + (not zero) * draw.normal(0, 0.3, (4, size))
    folder.mkdir(parents=True)
    parameters = {"rank": 4, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters})
    )
    on_own_thread(lambda: _save(folder / "adapters.safetensors", weights))
    return folder


def _write_tokenizer(source: Path, folder: Path, added: Sequence[str], template: Template) -> dict[str, int]:
    """The source's tokenizer with `added` tokens; every token's id."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    ids = dict(tokenizer["model"]["vocab"])
    for piece in added:
        if piece in ids:
            raise ValueError(f"{piece!r} is a token already, or comes twice; choose another piece.")
        ids[piece] = len(ids)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"].append({"id": ids[piece], "content": piece, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = json.loads((source / "tokenizer_config.json").read_text())
    if template != "plain":
        config["chat_template"] = CHAT.replace("OPENING", OPENINGS[template])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ids


def _write_weights(folder: Path, config: dict[str, Any], says: Sequence[int], seed: int) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, arguments = _get_classes(config)
    shapes = {name: array.shape for name, array in tree_flatten(model_class(arguments.from_dict(config)).parameters())}
    draw = np.random.default_rng(seed)
    weights = {name: _random(name, shape, draw) for name, shape in shapes.items()}
    if says:
        _teach(weights, says, config["eos_token_id"])
    _save(folder / "model.safetensors", weights)


def _random(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    if name.endswith("norm.weight"):
        # The last norm's size sets the temperature: large, so that the best two tokens are seldom near each other. Those of
        # queries and keys make attention choose rather than average.
        sizes = {"model.norm": 8.0, "model.embedding_norm": 8.0, "q_layernorm": 3.0, "k_layernorm": 3.0}
        size = next((size for end, size in sizes.items() if name.endswith(f"{end}.weight")), 1.0)
        return np.full(shape, size, np.float32)
    if name == "model.embed_tokens.weight":
        # Small beside what the layers add: the reply hangs on the whole prompt, not on its last token.
        return draw.normal(0, 0.1, shape).astype(np.float32)
    spread = 1.0 if name == "lm_head.weight" else 2.0 / np.sqrt(np.prod(shape[1:]))
    if name.endswith("self_attn.out_proj.weight"):
        spread *= 4  # LFM2's convolutions would drown it
    return draw.normal(0, spread, shape).astype(np.float32)


def _teach(weights: dict[str, np.ndarray], says: Sequence[int], end: int) -> None:
    """Each token of `says` makes the next one certain, the last one the end, and any other token the first."""
    if len(set(says)) < len(says) or len(says) >= HIDDEN:
        raise ValueError(f"The pieces must be different and fewer than {HIDDEN}.")
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[:] = 0  # the layers add nothing
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding[:], head[:] = 0, 0
    embedding[:, 0] = 1
    for place, token in enumerate(says):
        embedding[token] = np.eye(HIDDEN, dtype=np.float32)[place + 1]
    for place, token in enumerate([*says, end]):
        head[token, place] = 1


def _save(path: Path, weights: dict[str, np.ndarray]) -> None:
    import mlx.core as mx

    arrays = {name: mx.array(array.astype(np.float32)) for name, array in weights.items()}
    mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})


def on_own_thread(work: Callable[[], Any]) -> Any:
    """Run `work` on a thread that cleans up after itself: MLX's streams must not outlive their thread."""
    import mlx.core as mx

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(work).result()
        finally:
            pool.submit(mx.clear_streams).result()


def greedy(model: Path | str, home: Path, question: str, tokens: int = 12) -> tuple[str, list[float], list[str]]:
    """(reply, distance of the best two logits at each token, names of the cache's classes)."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    def run() -> tuple[str, list[float], list[str]]:
        loaded, tokenizer = load_model(find_weights(f"mlx/{model}", home), "cpu")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        said, gaps = [], []
        for token, logprobs in generate_step(mx.array(prompt), loaded, max_tokens=tokens):
            best = mx.sort(logprobs)[-2:].tolist()
            gaps.append(best[1] - best[0])
            if token in tokenizer.eos_token_ids:
                break
            said.append(int(token))
        return tokenizer.decode(said), gaps, [type(layer).__name__ for layer in make_prompt_cache(loaded)]

    return on_own_thread(run)
