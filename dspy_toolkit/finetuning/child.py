"""The training process: reads its job, trains, keeps the adapter, and says on stdout how far it is.

A line of stdout is a JSON object with one key: `progress`, `raced`, or `error` (type and message of a `ToolkitError`). The
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
from dspy_toolkit.finetuning.values import ArmResult, Raced, Trained, TrainSettings
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
        say("raced", _train(job, folder, began, say).model_dump(mode="json"))
    except ToolkitError as error:
        say("error", {"type": type(error).__name__, "message": str(error)})
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) and "memory" not in str(error).lower():
            raise
        say("error", {"type": TrainingError.__name__, "message": f"{out_of_memory(job.arms[0].settings)} ({error})"})
        return 1
    return 0


def out_of_memory(settings: TrainSettings) -> str:
    """What to say of a training that needed more memory than there is."""
    return (
        "The training needs more memory than there is. Close something, lower part_tokens "
        f"({settings.part_tokens}), or adapt fewer layers (layers is {settings.layers})."
    )


def _train(job: Job, folder: Path, began: float, say: Any) -> Raced:
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx

    from dspy_toolkit.finetuning.checkpoints import save_state
    from dspy_toolkit.finetuning.prediction import remember_speed
    from dspy_toolkit.finetuning.racing import Race
    from dspy_toolkit.finetuning.training import TrainingState

    mx.set_default_device(mx.cpu if job.device == "cpu" else mx.gpu)
    track = _Track(job, folder)
    before = [(state.cost, state.step_seconds) if state else (0, 0.0) for state in track.states]
    saved = time.monotonic()

    def save(arm: int, state: TrainingState, last: bool) -> None:
        nonlocal saved
        if last or time.monotonic() - saved >= job.save_seconds:
            save_state(track.file(arm), state)
            saved = time.monotonic()

    race = Race(
        job.arms,
        [len(job.data[arm.rows].rows) for arm in job.arms],
        job.rungs,
        track.training,
        save=save,
        say=lambda progress: say("progress", progress.model_dump(mode="json")),
    )
    winner = race.run(began + (job.deadline_seconds or math.inf))
    states = race.states
    for arm, state in states.items():
        remember_speed(job, arm, state.cost - before[arm][0], state.step_seconds - before[arm][1])
    tokens, seconds = (
        sum(state.tokens for state in states.values()),
        sum(state.step_seconds for state in states.values()),
    )
    state, stopped = states[winner], "deadline" if "deadline" in race.stopped.values() else race.stopped[winner]
    trained = Trained(
        adapter=_keep(job, winner, state),
        val_losses=tuple(state.val_losses),
        best_step=state.best_step,
        steps=state.step,
        tokens=tokens,
        seconds=seconds + sum(state.val_seconds for state in states.values()),
        tokens_per_second=tokens / seconds if seconds else 0.0,
        stopped=stopped,
        peak_bytes=mx.get_peak_memory(),
    )
    arms = [
        ArmResult(val_losses=tuple(states[arm].val_losses), steps=states[arm].step, stopped=race.stopped[arm])
        if arm in states
        else ArmResult(val_losses=(), steps=0, stopped="deadline")
        for arm in range(len(job.arms))
    ]
    raced = Raced(winner=winner, trained=trained, arms=tuple(arms))
    if stopped != "deadline":
        write_file(folder / "raced.json", raced.model_dump_json(indent=1).encode())
        for left in folder.glob("state-*.safetensors*"):  # with what a killed run had half written
            left.unlink(missing_ok=True)
    return raced


def _keep(job: Job, arm: int, state: Any) -> str:
    """Store the adapter of an arm; its hash."""
    from dspy_toolkit.finetuning.checkpoints import to_bytes
    from dspy_toolkit.finetuning.model import adapter_config
    from dspy_toolkit.lm.models.adapters import write_adapter

    settings = job.arms[arm].settings
    origin = {
        "base": job.name,
        "base_sha256": job.sha256,
        "rows_sha256": job.rows_sha256(arm),
        "settings": settings.model_dump(mode="json"),
        "val_losses": tuple((each.step, each.loss) for each in state.val_losses),
        "best_step": state.best_step,
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": state.step_seconds + state.val_seconds,
        "versions": library_versions(),
    }
    return write_adapter(Path(job.home), adapter_config(settings), to_bytes(state.best), origin).sha256


class _Track:
    """What the arms of a job take turns on: one model in memory, and the state of each in a file.

    Arms whose adapters are of one shape share the model, and what its frozen blocks gave for the rows.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        from dspy_toolkit.finetuning.checkpoints import load_state
        from dspy_toolkit.finetuning.rows import encode_rows
        from dspy_toolkit.lm.models.tokenizer import Tokenizer

        self._job, self._folder = job, folder
        self._weights = Weights(job.name, Path(job.folder), job.sha256)
        tokenizer = Tokenizer(self._weights.folder)
        self._rows = [
            (encode_rows(each.rows, tokenizer), encode_rows(each.val_rows, tokenizer, "validation row"))
            for each in job.data
        ]
        self.states = [load_state(self.file(arm)) for arm in range(len(job.arms))]
        """Where each arm is; None where it has not begun."""
        self._shape: Any = None
        self._model: Any = None

    def file(self, arm: int) -> Path:
        """Where the state of an arm is kept."""
        return self._folder / f"state-{arm}.safetensors"

    def training(self, arm: int) -> Any:
        """An arm, ready to go on from where it is."""
        from dspy_toolkit.finetuning.training import Training

        settings = self._job.arms[arm].settings
        rows, val_rows = self._rows[self._job.arms[arm].rows]
        training = Training(self._adapted(settings), rows, val_rows, settings, self.states[arm])
        self.states[arm] = training.state
        return training

    def _adapted(self, settings: TrainSettings) -> Any:
        from dspy_toolkit.finetuning.model import AdaptedModel
        from dspy_toolkit.lm.models.weights import load_model

        shape = (settings.kind, settings.rank, settings.scale, settings.layers)
        if shape != self._shape:
            self._model = None  # its memory first
            self._model = AdaptedModel(load_model(self._weights, self._job.device, differentiable=True)[0], settings)
            self._shape = shape
        return self._model


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
