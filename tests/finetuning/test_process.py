"""The training process: started, watched, killed, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dspy_toolkit.errors import ModelError, TrainingError
from dspy_toolkit.finetuning import Progress, Trained, TrainSettings, find_adapter, predict, train
from dspy_toolkit.lm.models.weights import Weights, find_weights
from tests.finetuning.conftest import make_rows
from tests.lm.tiny import greedy

Base = Callable[..., Weights]
SETTINGS = TrainSettings(epochs=6, rate=1e-2, batch_rows=4, layers=3)
ROWS, VAL_ROWS = make_rows(10), make_rows(4)


def run(weights: Weights, home: Path, **options: Any) -> Trained:
    return train(weights, ROWS, VAL_ROWS, SETTINGS, home, lease=False, **options)


def training_process() -> psutil.Process:
    """The one that this process has started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # of an earlier test, not yet waited for
            if "dspy_toolkit.finetuning" in " ".join(child.cmdline()):
                found.append(child)
    (process,) = found
    return process


@pytest.mark.soak
def test_a_killed_training_ends_as_one_that_was_not(base: Base, tmp_path: Path) -> None:
    """Two runs give the same bytes; so does one that was killed twice and begun three times."""
    weights = base()
    told: list[Progress] = []
    whole = run(weights, tmp_path / "whole", progress=told.append)
    assert whole.stopped == "epochs"
    assert whole.steps == 18
    assert [progress.step for progress in told if progress.loss is not None][-1] == 18
    assert told[-1].seconds_left == 0
    assert whole.tokens_per_second > 0
    steps: list[int] = []

    def kill_at(step: int) -> Callable[[Progress], None]:
        def progress(now: Progress) -> None:
            steps.append(now.step)
            if now.step == step:
                training_process().kill()

        return progress

    for step in (4, 11):
        with pytest.raises(TrainingError, match=r"was killed, by the system for want of memory.*last checkpoint"):
            run(weights, tmp_path / "killed", progress=kill_at(step), save_seconds=0)
    killed = run(weights, tmp_path / "killed", progress=lambda now: steps.append(now.step), save_seconds=0)
    assert steps.count(1) == 1, "it began once"
    assert killed.adapter == whole.adapter
    assert killed.val_losses == whole.val_losses
    assert (killed.steps, killed.tokens) == (whole.steps, whole.tokens)
    one, other = (find_adapter(tmp_path / name, whole.adapter).folder for name in ("whole", "killed"))
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    began = time.monotonic()
    assert run(weights, tmp_path / "whole") == whole
    assert time.monotonic() - began < 2, "what is finished is not trained again"
    left = {path.name for path in (tmp_path / "killed" / "checkpoints" / "finetuning").glob("*/*")}
    assert left == {"job.json", "log.txt", "raced.json"}


def test_the_adapter_runs_under_its_name_from_any_folder(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = base()
    rows = make_rows(8)
    settings = TrainSettings(epochs=80, rate=1e-2, rank=16)
    trained = train(weights, rows, (), settings, tmp_path, lease=False)
    monkeypatch.chdir(tmp_path)
    name = f"{weights.folder}+adapter-{trained.adapter[:8]}"
    found = find_weights(f"mlx/{name}", tmp_path)
    assert found.name == f"mlx/{weights.folder.name}+adapter-{trained.adapter[:8]}@{found.sha256[:8]}"
    assert find_weights(f"mlx/{name}@{found.sha256[:8]}", tmp_path) == found
    stored = find_adapter(tmp_path, trained.adapter[:8], weights.sha256)
    assert stored.origin.tokens == trained.tokens
    config = json.loads((stored.folder / "adapter_config.json").read_text())
    assert config.keys() == {"fine_tune_type", "num_layers", "lora_parameters"}
    question = "Thing 1, please"
    assert greedy(str(weights.folder), tmp_path, question)[0] != greedy(name, tmp_path, question)[0]


def test_the_process_ends_with_its_parent(base: Base, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from dspy_toolkit.finetuning import TrainSettings, train
from dspy_toolkit.lm.models.weights import Weights
from tests.finetuning.conftest import make_rows
weights = Weights({base().name!r}, Path({str(base().folder)!r}), {base().sha256!r})
settings = TrainSettings(epochs=1000, rate=1e-3, patience=999)
train(weights, make_rows(8), (), settings, Path({str(tmp_path)!r}), lease=False, progress=lambda p: print(p, flush=True))
"""
    for end in (signal.SIGKILL, signal.SIGINT):
        parent = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, end)
        try:
            parent.communicate(timeout=120)
        finally:
            parent.kill()
        assert parent.returncode != 0
        psutil.wait_procs([child], timeout=30)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_ends_the_caller_ends_the_process(base: Base, tmp_path: Path) -> None:
    found: list[psutil.Process] = []

    def interrupt(now: Progress) -> None:
        found.append(training_process())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base(), tmp_path, progress=interrupt)
    assert len(found) == 1
    assert not found[0].is_running()


def test_the_training_holds_the_accelerator_for_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.finetuning.process import _leased
    from dspy_toolkit.lm.models import lease
    from dspy_toolkit.locks import take

    monkeypatch.setattr(lease, "lease_path", lambda device: tmp_path / "leases" / device)
    engine = lease.acquire("cpu", 0)
    with _leased("cpu", 0) as inherited:  # an engine of this process shares it
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=inherited)
    engine.release()
    assert take(tmp_path / "leases" / "cpu") is None
    child.communicate(b"\n")
    free = take(tmp_path / "leases" / "cpu")
    assert free is not None
    free.release()
    with _leased("cpu", None) as inherited:
        assert inherited == ()


def test_errors_come_back_as_one(base: Base, tmp_path: Path) -> None:
    weights = base()
    long = ROWS[0].model_copy(update={"reply": "word " * 3000})
    with pytest.raises(TrainingError, match=r"^Training row 1 has \d+ tokens.* context is 2048"):
        train(weights, [ROWS[0], long], (), SETTINGS, tmp_path, lease=False)
    with pytest.raises(TrainingError, match="no rows to train on"):
        train(weights, [], (), SETTINGS, tmp_path)
    with pytest.raises(ModelError, match=r"mlx/llama\+x@12345678 has an adapter already. Train on .* mlx/llama\."):
        train(Weights("mlx/llama+x@12345678", weights.folder, "0" * 64, tmp_path), ROWS, (), SETTINGS, tmp_path)
    (weights.folder / "broken").mkdir()
    broken = Weights("mlx/broken", weights.folder / "broken", "0" * 64)
    with pytest.raises(ModelError, match="tokenizer in .*broken cannot be read"):
        train(broken, ROWS, (), SETTINGS, tmp_path, lease=False)


@pytest.mark.soak
def test_the_deadline_keeps_what_is_best_and_a_later_call_goes_on(base: Base, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 100.0, "patience": 999, "batch_rows": 1})
    first = train(base(), ROWS, VAL_ROWS, settings, tmp_path, lease=False, deadline_seconds=9)
    assert first.stopped == "deadline"
    assert first.steps < 1000  # of which a busy machine takes none
    assert find_adapter(tmp_path, first.adapter).origin.best_step == first.best_step
    steps: list[int] = []
    second = train(
        base(),
        ROWS,
        VAL_ROWS,
        settings,
        tmp_path,
        lease=False,
        deadline_seconds=9,
        progress=lambda p: steps.append(p.step),
    )
    assert min(steps) >= first.steps
    assert second.steps >= first.steps


def test_the_embedded_model_learns_labels(model_home: Path, tmp_path: Path) -> None:
    weights = find_weights("mlx/smollm2-135m", model_home)
    rows = make_rows(20, rules="Sort the thing.")
    settings = TrainSettings(epochs=1, batch_rows=10, layers=8, evaluations=1)
    guessed = predict(weights, rows, settings, tmp_path)
    trained = train(weights, rows, rows[:8], settings, tmp_path, lease=False)
    assert trained.val_losses[-1].loss < trained.val_losses[0].loss
    assert trained.tokens == guessed.tokens
    assert not guessed.measured
    assert 1 < guessed.seconds < 300
