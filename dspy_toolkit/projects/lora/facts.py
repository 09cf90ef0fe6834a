"""What code finds out before a training: the model's parameters, the rows' lengths, and what memory it takes.

The estimate of memory is a sum of four parts, and a constant:

- weights: parameters x bits / 8; a quantized weight has half a bit more, for its group's scale and offset
- adapter: 16 bytes a trained parameter: weight, gradient and Adam's two moments, in float32
- activations: 34 bytes a token, hidden unit and adapted layer in 16 bits, twice that in 32 (Korthikanti et al. 2022, equation 2,
  without attention's own); with checkpointing 2 bytes, and one layer whole
- logits: 12 bytes a token and word of the vocabulary: logits, softmax, gradient

Not covered: attention's square term, which matters past some 4,000 tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import DatasetError, ProjectError

PROCESS_BYTES = 0.33e9
"""Python, MLX and the tokenizer; from the committed runs' peak memory, less the other parts."""
USABLE = 0.75
"""Of the machine's memory: what macOS lets the GPU have by default, at least."""
ASSUMED_BITS = 4


@dataclass(frozen=True)
class Model:
    """The sizes that memory and time depend on."""

    parameters: float
    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    bits: float
    origin: str
    """Where the sizes are from."""


SIZES = {
    "under 1B": Model(0.135e9, 30, 576, 1_536, 49_152, 32, "SmolLM2-135M in float32, the measured model"),
    "1-4B": Model(3.2e9, 28, 3_072, 8_192, 128_256, ASSUMED_BITS, "the size of Llama-3.2-3B in 4 bits"),
    "7-8B": Model(8.0e9, 32, 4_096, 14_336, 128_256, ASSUMED_BITS, "the size of Llama-3.1-8B in 4 bits"),
    "larger": Model(14.8e9, 48, 5_120, 13_824, 152_064, ASSUMED_BITS, "the size of Qwen2.5-14B in 4 bits"),
}
"""Stand-ins where no folder of the model is given; sizes from the models' config.json."""


def read_model(folder: str | Path) -> Model:
    """A model's sizes, from its config.json.

    Raises:
        ProjectError: there is none, or it lacks a size.
    """
    path = Path(folder).expanduser() / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        wide, words = int(config["intermediate_size"]), int(config["vocab_size"])
        heads = int(config["num_attention_heads"])
        groups = int(config.get("num_key_value_heads") or heads)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectError(
            f"{path} does not say how large the model is: {error!r}. Give the folder of a model in mlx_lm's format, or a size: --model 3B."
        ) from error
    width = int(config.get("head_dim") or hidden // heads)
    layer = hidden * width * (2 * heads + 2 * groups) + 3 * hidden * wide
    embeddings = words * hidden * (1 if config.get("tie_word_embeddings", True) else 2)
    quantized = (config.get("quantization") or config.get("quantization_config") or {}).get("bits")
    bits = (
        float(quantized)
        if quantized
        else {"float32": 32.0}.get(str(config.get("torch_dtype") or config.get("dtype")), 16.0)
    )
    return Model(float(embeddings + layers * layer), layers, hidden, wide, words, bits, str(path))


def level_of(model: Model) -> str:
    """The situation's level of a model's size."""
    billions = model.parameters / 1e9
    return "under 1B" if billions < 1 else "1-4B" if billions < 5 else "7-8B" if billions < 10 else "larger"


def memory_bytes(
    model: Model, rank: int, layers: int, batch: int, length: int, *, checkpoint: bool = False
) -> dict[str, float]:
    """The estimate of a training's peak memory by parts, in bytes."""
    adapted = model.layers if layers < 0 else min(layers, model.layers)
    bits = model.bits + (0.5 if model.bits <= 8 else 0)
    size = 4 if model.bits == 32 else 2
    # A and B of seven linear layers: rank x (inputs + outputs) of each.
    trained = adapted * rank * (4 * 2 * model.hidden + 3 * (model.hidden + model.feed_forward))
    tokens = batch * length
    kept = 34 * size / 2
    activations = tokens * model.hidden * (2 * adapted + kept if checkpoint else kept * adapted)
    return {
        "weights": model.parameters * bits / 8,
        "adapter": 16.0 * trained,
        "activations": float(activations),
        "logits": 12.0 * tokens * model.vocabulary,
        "process": PROCESS_BYTES,
    }


def row_lengths(path: str | Path, limit: int = 2_000) -> tuple[int, float]:
    """(rows, mean characters) of a .jsonl file of `text`, `prompt`/`completion` or `messages`, as mlx_lm reads them.

    Raises:
        DatasetError: it cannot be read, or a row is none of these.
    """
    place = Path(path).expanduser()
    count, characters = 0, 0
    try:
        with place.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                count += 1
                if count <= limit:
                    characters += len(_text_of(json.loads(line), place, number))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{place} cannot be read: {error}. Give a .jsonl file of rows as mlx_lm takes them."
        ) from error
    if not count:
        raise DatasetError(f"{place} has no rows. Give a .jsonl file of rows as mlx_lm takes them.")
    return count, characters / min(count, limit)


def _text_of(row: Any, place: Path, number: int) -> str:
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            return " ".join(str(each.get("content", "")) for each in row["messages"] if isinstance(each, dict))
        if found := [str(row[name]) for name in ("text", "prompt", "completion") if name in row]:
            return " ".join(found)
    raise DatasetError(
        f"{place}, line {number}: neither text, prompt and completion, nor messages. mlx_lm would refuse it."
    )
