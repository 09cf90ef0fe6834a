"""What fine-tuning adapters really does: mlx_lm's own training on the embedded model, in a process of its own.

Six small texts, from files that every installation of this package has, or drawn. Each run is a few iterations of two rows of at
most 32 tokens by Adam, as `mlx_lm lora` runs it, with validations before, in the middle and at the end: shorter budgets come from
the same run. Measured is the validation loss in nats a token on rows that were not trained on.

Not covered: models of another size, long rows, hundreds of iterations. A rate that is best here for 135M parameters over eleven
iterations need not be best elsewhere; that much too high rates diverge, and that the number of rows an iteration sees sets the
time, carries over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.advising.cells import Cell

TEXTS = ("chat", "code", "prose", "records", "terms", "legal")
RATES = (1e-4, 5e-4, 2e-3, 1e-2)
ADAPTERS = ((4, 4), (16, 4), (16, 12))
"""(rank, layers)."""
ITERATIONS = {"few": 5, "many": 11}
"""Trained before the validation, as mlx_lm counts."""

SEEDS = (0, 1, 2)
BATCH, TOKENS, TRAIN, VAL = 2, 33, 40, 4
ALPHA = 2
"""scale = alpha / rank of mlx_lm's `lora_parameters` is 2, the usual."""
DIVERGED = 20.0
"""Nats a token that stand for a loss that is no number."""


def cells(grid: str = "full") -> tuple[Cell, ...]:
    """The cells of a grid: `full`, or `tiny` for a check in a few minutes. One cell is one text, one seed, one shape of adapter."""
    from dspy_toolkit.advising.cells import Cell

    chosen = list(product(SEEDS, TEXTS, ADAPTERS))
    if grid == "tiny":
        chosen = [(0, "records", (4, 4))]
    return tuple(
        Cell(
            project="lora",
            measure=f"{__name__}:measure",
            family=text,
            context={"text": text},
            configurations=tuple(
                {"learning_rate": rate, "rank": adapter[0], "layers": adapter[1]}
                for rate in (RATES if grid == "full" else RATES[1:3])
            ),
            seed=seed,
        )
        for seed, text, adapter in chosen
    )


def measure(context: Mapping[str, Any], configurations: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Train each configuration from the same weights; two rows each, one for each number of iterations."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx
    import numpy as np
    from mlx_lm.tuner.datasets import CacheDataset, TextDataset
    from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.weights import find_weights, load_model
    from dspy_toolkit.settings import load_settings

    weights = find_weights("mlx/smollm2-135m", load_settings().home)
    model, tokenizer = load_model(weights, inspect_hardware().device, differentiable=True)
    texts = rows_of(context["text"], seed)
    train, val = (
        CacheDataset(TextDataset([{"text": text} for text in part], tokenizer)) for part in (texts[VAL:], texts[:VAL])
    )
    rows = []
    for configuration in configurations:
        model.freeze()
        mx.random.seed(seed)
        np.random.seed(seed)  # mlx_lm shuffles by the global generator
        parameters = {"rank": configuration["rank"], "scale": float(ALPHA), "dropout": 0.0}
        linear_to_lora_layers(model, configuration["layers"], parameters)
        started = time.process_time()
        losses = _train(model, train, val, configuration["learning_rate"])
        seconds = time.process_time() - started
        remove_lora_layers(model)
        for name, iterations in ITERATIONS.items():
            loss = losses.get(iterations, DIVERGED)
            outcome = {
                "iterations": name,
                "loss": round(min(loss, DIVERGED) if loss == loss else DIVERGED, 5),
                "start_loss": round(losses[0], 5),
                "cpu_seconds": round(seconds, 2),
            }
            rows.append(dict(configuration) | outcome)
    return rows


def _train(model: Any, train: Any, val: Any, rate: float) -> dict[int, float]:
    """Iterations trained → validation loss."""
    import tempfile

    from mlx import optimizers
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs
    from mlx_lm.tuner.trainer import train as mlx_train

    losses: dict[int, float] = {}

    class Keep(TrainingCallback):
        def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
            losses[val_info["iteration"]] = float(val_info["val_loss"])

    with tempfile.TemporaryDirectory() as folder:
        every = max(ITERATIONS.values()) // 2 + 1
        arguments = TrainingArgs(
            batch_size=BATCH,
            iters=max(ITERATIONS.values()) + 1,
            val_batches=-1,
            steps_per_eval=every,
            steps_per_report=1_000,
            steps_per_save=1_000,
            max_seq_length=TOKENS,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        optimizer = optimizers.Adam(learning_rate=rate)
        mlx_train(
            model=model,
            optimizer=optimizer,
            train_dataset=train,
            val_dataset=val,
            args=arguments,
            training_callback=Keep(),
        )
    return losses


def rows_of(text: str, seed: int) -> list[str]:
    """Rows of some 120 characters of a text, shuffled by the seed; the first four are for validation."""
    import random

    drawn = random.Random(seed)
    if text in ("chat", "records", "terms"):
        rows = {"chat": _chat, "records": _records, "terms": _terms}[text](drawn)
    else:
        rows = _chunks(_read(text))
    drawn.shuffle(rows)
    return rows[: VAL + TRAIN]


def _read(text: str) -> str:
    if text == "code":
        import argparse

        return Path(argparse.__file__).read_text(encoding="utf-8")[20_000:50_000]
    package, pattern = {
        "prose": ("sklearn", "datasets/descr/*.rst"),
        "legal": ("matplotlib", "mpl-data/fonts/ttf/LICENSE_*"),
    }[text]
    found = find_spec(package)
    assert found is not None and found.origin is not None  # dependencies of this package
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(found.origin).parent.glob(pattern)))


def _chunks(text: str) -> list[str]:
    rows, row = [], ""
    for line in text.splitlines():
        row += line.rstrip() + "\n"
        if len(row) >= 120:
            rows.append(row[:240])
            row = ""
    return rows


def _chat(drawn: Any) -> list[str]:
    rows = []
    for _ in range(60):
        item, days = drawn.choice(("parcel", "invoice", "refund", "ticket", "voucher")), drawn.randint(2, 9)
        number = drawn.randint(1_000, 9_999)
        rows.append(
            f"Customer: where is {item} {number}?\nAgent: I am sorry for the wait. {item.capitalize()} {number} "
            f"comes within {days} days."
        )
    return rows


def _records(drawn: Any) -> list[str]:
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None
    lines = (Path(found.origin).parent / "datasets/data/wine_data.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [
        f"alcohol={a} acid={b} ash={c} class={line.rsplit(',', 1)[1]}"
        for line in lines
        for a, b, c in [line.split(",")[:3]]
    ]


def _terms(drawn: Any) -> list[str]:
    import unicodedata

    codes = [code for code in range(0x370, 0x2800) if unicodedata.name(chr(code), "")]
    return [
        "; ".join(f"U+{code:04X} {unicodedata.name(chr(code)).lower()}" for code in drawn.sample(codes, 2))
        for _ in range(60)
    ]
