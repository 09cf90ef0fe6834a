"""Training an adapter in a process of its own.

A process of its own since the engine's functions on a CPU have no gradients, since memory comes back whole when it ends, and
since a fault there ends no engine here. It goes on from its last checkpoint when an earlier call with the same arguments was
interrupted, and gives what a finished one gave at once.

The accelerator's lease is taken in this process, so that one of its engines that holds it shares it, and the training
process inherits it. What an engine of this process computes meanwhile makes both slower. Its model stays loaded.

Not covered: several machines, training on top of an adapter.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dspy_toolkit import errors
from dspy_toolkit.code_version import LIBRARY
from dspy_toolkit.durable import make_home, write_file
from dspy_toolkit.errors import ModelError, ToolkitError, TrainingError
from dspy_toolkit.finetuning.job import SAVE_SECONDS, Job, job_of
from dspy_toolkit.finetuning.values import Arm, Progress, Raced, RowSet, Trained, TrainingRow, TrainSettings
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.locks import held

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""After the deadline: then the process hangs, and is ended."""
LOCK_SECONDS = 5.0
"""To wait for a process that is at this very training; a killed one lets go at once."""


def train(
    weights: Weights,
    rows: Sequence[TrainingRow],
    val_rows: Sequence[TrainingRow],
    settings: TrainSettings,
    home: Path,
    *,
    deadline_seconds: float | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    resume: bool = True,
    lease: bool = True,
    lease_seconds: float = 600.0,
    save_seconds: float = SAVE_SECONDS,
) -> Trained:
    """Train an adapter for `weights` and keep it in `home/adapters`.

    Args:
        weights: the base, without an adapter.
        rows: to train on.
        val_rows: to tell when to stop and which step was best; without any, the last step is.
        home: settings' home.
        deadline_seconds: for all of it; what is best then is kept, and a later call goes on from there.
        progress: called in this thread after each step and evaluation; what it raises ends the training.
        resume: go on from an earlier call's checkpoint, or give its result; False begins anew.
        lease: have the accelerator to this process and the training; False runs beside whoever has it.
        lease_seconds: to wait for another process that holds it.
        save_seconds: between two checkpoints.

    Raises:
        TrainingError: a row cannot be trained on, the memory does not suffice, the loss diverged, or the process failed.
        ModelError: the model cannot be loaded, or has an adapter already.
        LeaseTimeout: another process holds the accelerator.
        StoreError: the home cannot be written.
    """
    if not rows:
        raise TrainingError("There are no rows to train on. Give at least one.")
    raced = race(
        weights, [RowSet(rows=tuple(rows), val_rows=tuple(val_rows))], [Arm(settings=settings)], (), home,
        deadline_seconds=deadline_seconds, progress=progress, resume=resume, lease=lease, lease_seconds=lease_seconds,
        save_seconds=save_seconds,
    )  # fmt: skip
    return raced.trained


def race(
    weights: Weights,
    data: Sequence[RowSet],
    arms: Sequence[Arm],
    rungs: Sequence[float],
    home: Path,
    *,
    deadline_seconds: float | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    resume: bool = True,
    lease: bool = True,
    lease_seconds: float = 600.0,
    save_seconds: float = SAVE_SECONDS,
) -> Raced:
    """Train with several settings, drop those that fall behind, and keep the best adapter (`racing`).

    Args:
        data: what the arms read; each names its own.
        arms: at least one. Where two are level, the earlier goes on.
        rungs: passes over the rows after which they are compared, ascending; half of them go on from each.

    The other arguments and the errors are those of `train`.
    """
    from dspy_toolkit.lm.models.hardware import inspect_hardware

    if weights.adapter is not None:
        raise ModelError(
            f"{weights.name} has an adapter already. Train on the model without it, {weights.name.rpartition('+')[0]}."
        )
    home = home.expanduser().resolve()
    make_home(home)
    device = inspect_hardware().device
    job = job_of(weights, data, arms, rungs, home, device)
    job = job.model_copy(update={"deadline_seconds": deadline_seconds, "save_seconds": save_seconds})
    with held(job.place.with_suffix(".lock"), LOCK_SECONDS):
        if not resume:
            for path in (job.place / "raced.json", *job.place.glob("state-*.safetensors")):
                path.unlink(missing_ok=True)
        if (before := _finished(job)) is not None:
            return before
        write_file(job.place / "job.json", job.model_dump_json().encode())
        with _leased(device, lease_seconds if lease else None) as inherited:
            return _run(job, inherited, progress)


def _finished(job: Job) -> Raced | None:
    """What an earlier call gave, where its adapter is still there."""
    from dspy_toolkit.lm.models.adapters import find_adapter

    with suppress(OSError, ValueError, ModelError):
        raced = Raced.model_validate_json((job.place / "raced.json").read_bytes())
        find_adapter(Path(job.home), raced.trained.adapter, job.sha256)
        return raced
    return None


@contextmanager
def _leased(device: str, seconds: float | None) -> Iterator[tuple[int, ...]]:
    """The files that the training process must inherit to hold the accelerator."""
    from dspy_toolkit.lm.models.lease import acquire

    if seconds is None:
        yield ()
        return
    lease = acquire(device, seconds)
    try:
        yield (lease.fileno(),)
    finally:
        lease.release()


def _run(job: Job, inherited: tuple[int, ...], progress: Callable[[Progress], None]) -> Raced:
    with (job.place / "log.txt").open("wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dspy_toolkit.finetuning", str(job.place)],
            # Never written to: it ends when this process does, and with it the training.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=_environment(),
            pass_fds=inherited,
        )
    limit = None
    if job.deadline_seconds is not None:
        limit = threading.Timer(job.deadline_seconds + GRACE_SECONDS, process.kill)
        limit.daemon = True
        limit.start()
    try:
        assert process.stdout is not None
        raced = _read(process.stdout, progress)
        status = process.wait()
        if raced is None:
            raise _failure(job, status)
        return raced
    finally:  # Ctrl-C too
        if limit is not None:
            limit.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    """Of the training process: it finds this library, and nothing in the folder that it is started in."""
    path = [str(LIBRARY.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # MKL would choose its threads by the load of the moment, and other threads round differently.
    return {"MKL_DYNAMIC": "FALSE", **os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def _read(lines: IO[bytes], progress: Callable[[Progress], None]) -> Raced | None:
    """What came of it; None when the process ended without saying. Raises the error that it names."""
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "progress" in said:
            progress(Progress.model_validate(said["progress"]))
        elif "raced" in said:
            return Raced.model_validate(said["raced"])
        else:
            kind = getattr(errors, said["error"]["type"], TrainingError)
            raise (kind if issubclass(kind, ToolkitError) else TrainingError)(said["error"]["message"])
    return None


def _failure(job: Job, status: int) -> TrainingError:
    path = job.place / "log.txt"
    if status == -signal.SIGKILL:
        from dspy_toolkit.finetuning.child import out_of_memory

        return TrainingError(
            "The training process was killed, by the system for want of memory unless somebody did it. "
            f"{out_of_memory(job.arms[0].settings)} The same call goes on from its last checkpoint."
        )
    with suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return TrainingError(
            f"The training process failed with status {status}: {lines[-1][:300] if lines else 'it said nothing'} "
            f"(all of it in {path}). The same call goes on from its last checkpoint."
        )
    return TrainingError(f"The training process failed with status {status}. Run it again.")
