"""The training process: reads its job, trains, keeps the adapter, and says on stdout how far it is.

A line of stdout is a JSON object with one key: `progress`, `trained`, or `error` (type and message of a `ToolkitError`). The
process ends with its parent, however that ends: Linux kills it, and everywhere its stdin ends. Ctrl-C is for the parent,
which then ends it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ToolkitError, TrainingError
from dspy_toolkit.finetuning.job import Job, library_versions
from dspy_toolkit.finetuning.values import Trained, TrainSettings
from dspy_toolkit.lm.models.weights import Weights

PR_SET_PDEATHSIG = 1


def main(folder: Path) -> int:
    """Train what `folder/job.json` says; the exit status."""
    began = time.monotonic()
    say = _take_stdout()
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    job = Job.model_validate_json((folder / "job.json").read_bytes())
    try:
        say("trained", _train(job, folder, began, say).model_dump(mode="json"))
    except ToolkitError as error:
        say("error", {"type": type(error).__name__, "message": str(error)})
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) and "memory" not in str(error).lower():
            raise
        say("error", {"type": TrainingError.__name__, "message": f"{out_of_memory(job.settings)} ({error})"})
        return 1
    return 0


def out_of_memory(settings: TrainSettings) -> str:
    """What to say of a training that needed more memory than there is."""
    return (
        "The training needs more memory than there is. Close something, lower part_tokens "
        f"({settings.part_tokens}), or adapt fewer layers (layers is {settings.layers})."
    )


def _train(job: Job, folder: Path, began: float, say: Any) -> Trained:
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx

    from dspy_toolkit.finetuning.checkpoints import load_state, save_state, to_bytes
    from dspy_toolkit.finetuning.model import AdaptedModel, adapter_config
    from dspy_toolkit.finetuning.prediction import remember_speed
    from dspy_toolkit.finetuning.rows import encode_rows
    from dspy_toolkit.finetuning.training import Training, TrainingState
    from dspy_toolkit.lm.models.adapters import write_adapter
    from dspy_toolkit.lm.models.tokenizer import Tokenizer
    from dspy_toolkit.lm.models.weights import load_model

    weights, settings, home = Weights(job.name, Path(job.folder), job.sha256), job.settings, Path(job.home)
    tokenizer = Tokenizer(weights.folder)
    rows = encode_rows(job.rows, tokenizer)
    val_rows = encode_rows(job.val_rows, tokenizer, "validation row")
    mx.set_default_device(mx.cpu if job.device == "cpu" else mx.gpu)
    model = AdaptedModel(load_model(weights, job.device, differentiable=True)[0], settings)
    checkpoint = folder / "state.safetensors"
    training = Training(model, rows, val_rows, settings, load_state(checkpoint))
    before, saved = (training.state.cost, training.state.step_seconds), time.monotonic()

    def save(state: TrainingState, last: bool) -> None:
        nonlocal saved
        if last or time.monotonic() - saved >= job.save_seconds:
            save_state(checkpoint, state)
            saved = time.monotonic()

    stopped = training.run(
        deadline=began + (job.deadline_seconds or math.inf),
        progress=lambda progress: say("progress", progress.model_dump(mode="json")),
        save=save,
    )
    state = training.state
    origin = {
        "base": job.name,
        "base_sha256": job.sha256,
        "rows_sha256": job.rows_sha256,
        "settings": settings.model_dump(mode="json"),
        "val_losses": tuple((each.step, each.loss) for each in state.val_losses),
        "best_step": state.best_step,
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": state.step_seconds + state.val_seconds,
        "versions": library_versions(),
    }
    stored = write_adapter(home, adapter_config(settings), to_bytes(state.best), origin)
    remember_speed(job, state.cost - before[0], state.step_seconds - before[1])
    trained = Trained(
        adapter=stored.sha256,
        val_losses=tuple(state.val_losses),
        best_step=state.best_step,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.step_seconds + state.val_seconds,
        tokens_per_second=state.tokens / state.step_seconds if state.step_seconds else 0.0,
        stopped=stopped,
        peak_bytes=mx.get_peak_memory(),
    )
    if stopped != "deadline":
        write_file(folder / "trained.json", trained.model_dump_json(indent=1).encode())
        for left in folder.glob(f"{checkpoint.name}*"):  # with what a killed run had half written
            left.unlink(missing_ok=True)
    return trained


def _take_stdout() -> Any:
    """A function that writes a line to stdout, which nobody else reaches: a library's print goes to stderr."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(kind: str, value: Any) -> None:
        lines.write(json.dumps({kind: value}) + "\n")
        lines.flush()

    return say


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)  # nobody reads what comes

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
