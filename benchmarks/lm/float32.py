"""A copy of a model in float32, for systems that would otherwise run it quantized.

MLX has no fast quantized product on the CPU: there the engine expands the weights when it loads them, and a peer that
did not would be thirty times slower for a reason that is not its own.

    python -m benchmarks.lm.float32 SOURCE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def expand(source: Path, target: Path) -> None:
    """Write the model of `source` to `target` with float32 weights. The folder appears whole or not at all."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import dequantize_model, load_model, save_config, save_model

    model, config = load_model(source)
    model = dequantize_model(model)
    model.update(
        tree_map(lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    )
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(partial, model)
    for name in ("quantization", "quantization_config"):
        config.pop(name, None)
    save_config(config, partial / "config.json")
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not (partial / path.name).exists():
            shutil.copy(path, partial)
    partial.rename(target)


def is_quantized(folder: Path) -> bool:
    """Whether the weights in `folder` are."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "quantization" in config or "quantization_config" in config


if __name__ == "__main__":
    expand(Path(sys.argv[1]), Path(sys.argv[2]))
