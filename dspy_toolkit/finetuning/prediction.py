"""How long a training will take, before it is begun.

The speed of the last training of the same model, kind and layers on this machine is kept in `home/models`; without one it is
guessed from the model's size.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import StoreError
from dspy_toolkit.finetuning.batches import epoch_batches, evaluation_parts, steps_of_epoch, total_steps
from dspy_toolkit.finetuning.job import Job, job_of
from dspy_toolkit.finetuning.rows import encode_rows
from dspy_toolkit.finetuning.values import Arm, Prediction, TrainingRow, TrainSettings
from dspy_toolkit.lm.models.weights import Weights, needed_bytes

log = logging.getLogger(__name__)

FLOPS = {"cpu": 70e9, "metal": 2e12, "cuda": 20e12}
"""Floating point operations a second that training reaches, by device: the default without a measurement."""
FLOPS_A_WEIGHT = 4
"""For each token: forward, and backward to the activations; the weights themselves have no gradient."""
FORWARD_SHARE = 0.35
"""Of a step's time, what its forward pass alone takes: an evaluation has only that."""
START_SECONDS = 8.0
"""To start the process and load a small model."""
LEAST_SECONDS = 5.0
"""Shorter trainings say little about speed."""


def predict(
    weights: Weights,
    rows: Sequence[TrainingRow],
    settings: TrainSettings,
    home: Path,
    val_rows: Sequence[TrainingRow] = (),
) -> Prediction:
    """What `process.train` will take with the same arguments, if no patience ends it earlier.

    Raises:
        TrainingError: a row cannot be trained on.
        ModelError: the tokenizer cannot be read.
    """
    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer

    device = inspect_hardware().device  # first: the tokenizer imports MLX, and the BLAS must be there before
    tokenizer = load_tokenizer(weights.folder, weights.sha256)
    encoded, val = encode_rows(rows, tokenizer), encode_rows(val_rows, tokenizer, "validation row")
    # Plain caches are assumed, as nearly all models have them: looking would need the model.
    epoch = [part for batch in epoch_batches(encoded, settings, 0, share=True) for part in batch]
    steps, of_epoch = total_steps(len(encoded), settings), steps_of_epoch(len(encoded), settings)
    epochs = steps / of_epoch
    once, adapted = sum(part.cost for part in epoch), _adapted(weights, settings)
    cost = epochs * once
    if val:
        evaluations = 1 + steps / max(1, round(of_epoch / settings.evaluations))
        val_cost = sum(part.cost for part in evaluation_parts(val, settings, share=True))
        once, cost = once + val_cost, cost + FORWARD_SHARE * evaluations * val_cost
    cost += FORWARD_SHARE * (1 / adapted - 1) * once  # the blocks below the first adapted one
    speed, measured = _speed(weights, settings, home, device)
    tokens = round(epochs * sum(part.tokens for part in epoch))
    return Prediction(seconds=START_SECONDS + cost / speed, tokens=tokens, measured=measured)


def seconds_a_token(weights: Weights, settings: TrainSettings, home: Path) -> float:
    """What a step takes for each token that it computes, where the rows are not known yet."""
    from dspy_toolkit.lm.models.hardware import inspect_hardware

    return 1 / _speed(weights, settings, home, inspect_hardware().device)[0]


def _speed(weights: Weights, settings: TrainSettings, home: Path, device: str) -> tuple[float, bool]:
    """(tokens a second as `Part.cost` counts them, whether that was measured)."""
    speed = _speeds(home).get(_key(job_of(weights, (), [Arm(settings=settings)], (), home, device)))
    if speed is not None:
        return speed, True
    # Four bytes a weight on a CPU; elsewhere what is loaded has between half a byte and two of them.
    weights_count = needed_bytes(weights.folder, device) / (4 if device == "cpu" else 1)
    return FLOPS[device] / FLOPS_A_WEIGHT / (weights_count * _adapted(weights, settings)), False


def _adapted(weights: Weights, settings: TrainSettings) -> float:
    """Share of the blocks that a step computes: those below the first adapted one are computed once."""
    blocks = json.loads((weights.folder / "config.json").read_text()).get("num_hidden_layers")
    return min(settings.layers / blocks, 1.0) if blocks and settings.layers > 0 else 1.0


def remember_speed(job: Job, arm: int, cost: int, seconds: float) -> None:
    """Keep what an arm reached: `cost` tokens, as `Part.cost`, in `seconds`."""
    if seconds < LEAST_SECONDS:
        return
    speeds = {**_speeds(Path(job.home)), _key(job, arm): cost / seconds}
    try:
        write_file(_file(Path(job.home)), json.dumps(speeds, indent=1).encode())
    except StoreError as error:
        log.warning("The speed of this training cannot be remembered. %s", error)


def _file(home: Path) -> Path:
    return home / "models" / "training-speeds.json"


def _key(job: Job, arm: int = 0) -> str:
    settings = job.arms[arm].settings
    return " ".join((job.sha256[:16], platform.node(), job.device, settings.kind, f"layers={settings.layers}"))


def _speeds(home: Path) -> dict[str, float]:
    with suppress(OSError, ValueError, TypeError, AttributeError):  # damaged or not there: then it is guessed
        return {str(key): float(value) for key, value in json.loads(_file(home).read_text()).items() if value > 0}
    return {}
