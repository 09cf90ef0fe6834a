"""A training's state as a file, so that a killed run goes on where it was.

One safetensors file: the arrays of `TrainingState` under `now.`, `best.` and `optimizer.`, everything else as JSON in its
metadata. It is replaced as a whole; one that cannot be read is set aside, and the training begins anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dspy_toolkit.durable import set_aside, write_file
from dspy_toolkit.finetuning.training import TrainingState
from dspy_toolkit.finetuning.values import Evaluation

GROUPS = ("now", "best", "optimizer")
PLAIN = ("step", "best_step", "tokens", "cost", "step_seconds", "val_seconds")


def to_bytes(arrays: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as the contents of a safetensors file: the same arrays give the same bytes."""
    from safetensors.numpy import save

    return save({name: np.array(array) for name, array in sorted(arrays.items())}, metadata)


def save_state(path: Path, state: TrainingState) -> None:
    """Raises StoreError: it cannot be written; the file is then as it was."""
    arrays = {f"{group}.{name}": array for group in GROUPS for name, array in getattr(state, group).items()}
    plain = {name: getattr(state, name) for name in PLAIN}
    plain["val_losses"] = [each.model_dump() for each in state.val_losses]
    write_file(path, to_bytes(arrays, {"state": json.dumps(plain)}))


def load_state(path: Path) -> TrainingState | None:
    """The state in `path`; None where there is none, or none that can be read."""
    if not path.exists():
        return None
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        plain = json.loads(metadata["state"])
        plain["val_losses"] = [Evaluation(**each) for each in plain["val_losses"]]
        groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for name, array in arrays.items():
            group, _, inner = name.partition(".")
            groups[group][inner] = array
        mx.eval(groups)  # read now: the file may be replaced
        return TrainingState(**groups, **plain)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        set_aside(path, f"the state of a training cannot be read: {error}")
        return None
