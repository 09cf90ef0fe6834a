"""Training LoRA and DoRA adapters on this machine, and keeping them.

    weights = find_weights("mlx/smollm2-135m", home)
    trained = train(weights, rows, val_rows, TrainSettings(), home)
    find_weights(f"mlx/smollm2-135m+adapter-{trained.adapter[:8]}", home)

values       rows, settings, results
rows         rows as tokens; batches which of them are computed together
model        a model with a fresh adapter, and its gradients; training the loop over the batches
racing       several trainings at once, of which the better half goes on
checkpoints  how a killed training goes on; job what it is, child the process that does it, process who starts it
prediction   how long it will take

Adapters are kept by `lm.models.adapters` and run by the engine. Knows nothing of DSPy, programs and metrics.
"""

from __future__ import annotations

from dspy_toolkit.finetuning.prediction import predict
from dspy_toolkit.finetuning.process import race, train
from dspy_toolkit.finetuning.values import (
    Arm,
    Evaluation,
    Prediction,
    Progress,
    Raced,
    RowSet,
    Trained,
    TrainingRow,
    TrainSettings,
)
from dspy_toolkit.lm.models.adapters import add_adapter, find_adapter

__all__ = [
    "Arm",
    "Evaluation",
    "Prediction",
    "Progress",
    "Raced",
    "RowSet",
    "TrainSettings",
    "Trained",
    "TrainingRow",
    "add_adapter",
    "find_adapter",
    "predict",
    "race",
    "train",
]
