"""Models of Llama's architecture with random weights, in mlx_lm's format, for measurements that need no trained ones.

They say nothing sensible, and every token of the vocabulary may follow any other; their arithmetic is a trained
model's. The tokenizer knows single bytes and an end mark; ids beyond these have no text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "hidden": 128, "inner": 256, "heads": 4, "groups": 2, "width": 32, "vocabulary": 512},
    "small": {"layers": 12, "hidden": 1024, "inner": 2816, "heads": 16, "groups": 4, "width": 64, "vocabulary": 32768},
    # The shape of Qwen3-4B.
    "large": {
        "layers": 36,
        "hidden": 2560,
        "inner": 9728,
        "heads": 32,
        "groups": 8,
        "width": 128,
        "vocabulary": 151936,
    },
}
FORMATS = ("float32", "bf16", "4bit")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_model(folder: Path, size: dict[str, int], kind: str) -> None:
    """Write a model.

    Args:
        folder: to be made.
        size: one of SIZES.
        kind: one of FORMATS; `4bit` has groups of 64 and the rest in bf16.
    """
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.models import llama
    from mlx_lm.utils import quantize_model, save_config, save_model

    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": size["layers"],
        "hidden_size": size["hidden"],
        "intermediate_size": size["inner"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["groups"],
        "head_dim": size["width"],
        "vocab_size": size["vocabulary"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "float32" if kind == "float32" else "bfloat16",
        "eos_token_id": 256,
    }
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    dtype = mx.float32 if kind == "float32" else mx.bfloat16
    model.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    if kind == "4bit":
        model, config = quantize_model(model, config, group_size=64, bits=4)
        mx.eval(model.parameters())
    folder.mkdir(parents=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
