"""Our training loop and mlx_lm's own on the same rows: tokens a second, and memory at its highest.

    python -m benchmarks.lm.finetuning [STEPS [LAYERS]]

The embedded model, LoRA of rank 8 in all layers or the last LAYERS, 8 rows a step: prompts of the router under a short instruction, some 70
tokens with their label. Each loop runs in a process of its own, after two steps that do not count. Goals: at least 80 % of
mlx_lm's tokens a second, counted as tokens of the rows whatever each loop computes of them; at most 110 % of its memory.

Not covered: what is learnt (`tests/finetuning`), a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parents[2] / "data" / "router" / "requests.jsonl"
INSTRUCTION = "Name the project of the toolkit that handles the request: lora, diffusion, clip, federated, compression or meta-learning."
STEPS = 4
BATCH = 8
WARM = 2
SPEED, MEMORY = 0.8, 1.1


def measure(loop: str, home: Path, steps: int, layers: int) -> dict[str, float]:
    """Tokens a second and peak bytes of one loop, in this process."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx

    from dspy_toolkit.finetuning import TrainingRow, TrainSettings
    from dspy_toolkit.finetuning.rows import encode_rows
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer
    from dspy_toolkit.lm.models.weights import find_weights, load_model
    from dspy_toolkit.lm.protocol import Message

    weights = find_weights("mlx/smollm2-135m", home)
    model = load_model(weights, "cpu", differentiable=True)[0]
    lines = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    said = [
        TrainingRow(
            prompt=(Message(role="system", content=INSTRUCTION), Message(role="user", content=line["request"])),
            reply=line["project"],
        )
        for line in lines[: BATCH * (steps + WARM)]
    ]
    rows = encode_rows(said, load_tokenizer(weights.folder, weights.sha256))
    settings = TrainSettings(epochs=1, batch_rows=BATCH, layers=layers)
    seconds, tokens = (_ours if loop == "ours" else _theirs)(model, rows, settings, steps)
    return {"tokens_per_second": tokens / seconds, "peak_bytes": mx.get_peak_memory()}


def _ours(model: Any, rows: list[Any], settings: Any, steps: int) -> tuple[float, int]:
    from dspy_toolkit.finetuning.model import AdaptedModel
    from dspy_toolkit.finetuning.training import Training

    training = Training(AdaptedModel(model, settings), rows, [], settings)
    marks = [(0.0, 0)]
    training.run(progress=lambda _: marks.append((training.state.step_seconds, training.state.tokens)))
    (before, fewer), (after, more) = marks[WARM], marks[WARM + steps]
    return after - before, more - fewer


def _theirs(model: Any, rows: list[Any], settings: Any, steps: int) -> tuple[float, int]:
    from mlx import optimizers
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    parameters = {"rank": settings.rank, "scale": settings.scale, "dropout": 0.0}
    linear_to_lora_layers(model, settings.layers, parameters)
    dataset = [(row.tokens.tolist(), int(row.scored[0])) for row in rows]
    optimizer = optimizers.AdamW(learning_rate=settings.rate)

    def run(iterations: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArgs(
                batch_size=BATCH,
                iters=iterations,
                steps_per_report=10**6,
                adapter_file=f"{folder}/adapters.safetensors",
            )
            began = time.perf_counter()
            train(model, optimizer, dataset, args=arguments)
            return time.perf_counter() - began

    run(WARM)
    # Batches of all lengths, drawn anew: their mean.
    return run(steps), round(sum(len(row.tokens) for row in rows) / len(rows) * BATCH * steps)


def main(steps: int, layers: int) -> None:
    """Print both, and their ratios."""
    with tempfile.TemporaryDirectory() as home:
        found = {}
        for loop in ("mlx_lm", "ours"):
            command = [sys.executable, "-m", "benchmarks.lm.finetuning", loop, home, str(steps), str(layers)]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            found[loop] = json.loads(output.splitlines()[-1])
    ours, theirs = found["ours"], found["mlx_lm"]
    for name, each in found.items():
        print(f"{name:8} {each['tokens_per_second']:7.1f} tokens/s {each['peak_bytes'] / 2**30:6.2f} GB at the highest")
    speed = ours["tokens_per_second"] / theirs["tokens_per_second"]
    memory = ours["peak_bytes"] / theirs["peak_bytes"]
    print(f"speed  {speed:.2f} of mlx_lm's, goal at least {SPEED} {'' if speed >= SPEED else '(missed)'}")
    print(f"memory {memory:.2f} of mlx_lm's, goal at most {MEMORY} {'' if memory <= MEMORY else '(missed)'}")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    else:
        given = [int(argument) for argument in sys.argv[1:]]
        main(*given, *(STEPS, -1)[len(given) :])
