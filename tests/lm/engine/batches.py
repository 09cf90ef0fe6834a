"""Batches without an engine around them: sequences are stepped by the test, on its own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspy_toolkit.lm.engine.batch import Batch
from dspy_toolkit.lm.engine.rules import DEFAULT
from dspy_toolkit.lm.engine.sequence import Sequence as Running
from dspy_toolkit.lm.models.hardware import inspect_hardware, pretend_gpu
from dspy_toolkit.lm.models.memory import plan_model
from dspy_toolkit.lm.models.tokenizer import Tokenizer, load_tokenizer
from dspy_toolkit.lm.models.weights import Weights, find_weights
from dspy_toolkit.lm.protocol import PendingReply
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import ask

Run = Callable[[Callable[[], Any]], Any]
"""Runs something on a thread of its own, and gives what it gave."""


class Bench:
    """One model on disk, and batches of it."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.weights: Weights = find_weights(f"mlx/{folder}", home)
        self.tokenizer: Tokenizer = load_tokenizer(self.weights.folder, self.weights.sha256)
        self.hardware = inspect_hardware()

    @contextmanager
    def batch(self, *, gpu: bool, plan: dict[str, Any] | None = None, **settings: Any) -> Iterator[Batch]:
        """A batch, on a GPU's ways or a CPU's."""
        hardware = pretend_gpu(self.hardware) if gpu else self.hardware
        whole = plan_model(self.weights, hardware, LMSettings(lease="share", **settings))
        batch = Batch(
            self.weights, self.tokenizer, whole.model_copy(update=plan or {}), hardware, DEFAULT[hardware.device]
        )
        try:
            yield batch
        finally:
            batch.free()

    def sequence(self, prompt: Sequence[int], *, endless: bool = True, **fields: Any) -> Running:
        """A request for a prompt of tokens; `endless`: no token ends it."""
        request = ask("-", **fields)
        matcher = self.tokenizer.matcher(request.grammar) if request.grammar else None
        stops = frozenset() if endless else self.tokenizer.stop_tokens
        return Running(request, PendingReply(), prompt, matcher, self.tokenizer.decode, stops, 600.0)


def insert(batch: Batch, sequences: Sequence[Running]) -> None:
    """Start sequences, as the engine does."""
    for sequence in sequences:
        batch.note(sequence)
    batch.insert(sequences)


def finish(batch: Batch, after: Callable[[], None] = lambda: None) -> dict[Running, str]:
    """Step until nothing runs; why each ended. `after` is called after each step."""
    over: dict[Running, str] = {}
    while batch.sequences:
        batch.step()
        over |= dict(batch.take_over())
        after()
    return over


def answer(batch: Batch, sequences: Sequence[Running]) -> list[list[int]]:
    """The replies of all."""
    insert(batch, sequences)
    finish(batch)
    return [sequence.reply for sequence in sequences]
