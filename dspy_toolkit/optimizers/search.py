"""What every optimizer searches with: the examples, the metered models, a record of the candidates, and the best so far.

The optimizers of DSPy talk a lot and catch broadly. `Search` keeps the books beside them: each candidate's score on the
same validation rows, the calls spent when it was scored, and the best program, the unchanged one included. When the budget
runs out the best so far stands.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from dspy_toolkit.errors import BudgetExhausted
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.metrics import Metric
from dspy_toolkit.store import Value, canonical_json

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Told (logical calls spent, calls granted, what is going on), from any thread."""


class Trial(Value):
    """One candidate."""

    label: str
    val_mean: float
    lm_calls: int
    """Logical calls spent when it had been scored."""


@dataclass
class Search:
    """One compilation under way."""

    program: dspy.Module
    """As it came; never changed."""
    train: list[dspy.Example]
    val: list[dspy.Example]
    """The rows that candidates are compared on."""
    val_keys: list[str]
    metric: Metric
    connection: Connection
    checkpoint: Path
    """A folder of this compilation's own."""
    seed: int
    threads: int
    lm_calls: int
    """The budget."""
    progress: Progress | None = None
    trials: list[Trial] = field(default_factory=list)
    best: dspy.Module | None = None
    best_mean: float = -1.0
    baseline: float = 0.0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self._doing = "starting"
        self.lm: MeteredLM = self.connection.lm.metered(self.lm_calls, self._tell)
        # One meter for both models: the budget is theirs together.
        self.reflection_lm: MeteredLM = self.connection.reflection_lm.metered()
        self.reflection_lm.meter = self.lm.meter

    @property
    def meter(self) -> Meter:
        """The counters of this compilation."""
        return self.lm.meter

    def say(self, doing: str) -> None:
        """What is going on, for the progress display."""
        self._doing = doing
        self._tell(self.meter.logical)

    def _tell(self, spent: int) -> None:
        if self.progress is not None:
            self.progress(spent, self.lm_calls, self._doing)

    def score(self, candidate: dspy.Module, label: str) -> float | None:
        """The candidate's mean on the validation rows; None when the budget ran out before it was known.

        Raises:
            MetricError: the metric fails on more than a tenth of the rows.
        """
        self.say(label)
        try:
            rows = score_rows(
                candidate,
                self.val,
                self.metric,
                keys=self.val_keys,
                split="val",
                lm=self.lm,
                adapter=self.connection.adapter,
                threads=self.threads,
            )
        except BudgetExhausted:
            self.exhausted = True
            return None
        mean = sum(row.value for row in rows) / len(rows)
        self.note(candidate, label, mean)
        return mean

    def note(self, candidate: dspy.Module, label: str, mean: float) -> None:
        """Enter a candidate with its mean on the validation rows; the first one is the program as it came."""
        if not self.trials:
            self.baseline = mean
        self.trials.append(Trial(label=label, val_mean=mean, lm_calls=self.meter.logical))
        # Equal is not better: of two that score alike the earlier, the unchanged program first of all, is kept.
        if mean > self.best_mean:
            self.best, self.best_mean = candidate, mean
        self.say(f"{label}: {mean:.0%}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """DSPy's settings for an optimizer of its own, with its prints and bars kept off the terminal."""
        heard = _Listener()
        with (
            dspy.context(lm=self.lm, adapter=self.connection.adapter, num_threads=self.threads),
            contextlib.redirect_stdout(heard),
            contextlib.redirect_stderr(heard),
            quiet_loggers(),
        ):
            yield


class _Listener(io.TextIOBase):
    """Where an optimizer's prints go: to the log, a line each."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                log.debug("%s", line.strip())
        return len(text)


class _NoEcho(logging.Filter):
    """Turns what DSPy logs into debug lines of ours: a spent budget otherwise fills the terminal with tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        log.debug("%s: %s", record.name, record.getMessage())
        return False


NOISY = ("dspy", "gepa", "optuna")


@contextlib.contextmanager
def quiet_loggers() -> Iterator[None]:
    """Keep the handlers of the optimizers' loggers from writing while the block runs."""
    silence = _NoEcho()
    handlers = [handler for name in NOISY for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(silence)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(silence)


def prompt_of(program: dspy.Module) -> bytes:
    """What of a program reaches the model: instructions, fields and demonstrations, as canonical JSON."""
    return canonical_json(_without_lm(program.dump_state()))


def _without_lm(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_lm(item) for key, item in value.items() if key not in ("lm", "metadata", "traces", "train")
        }
    return [_without_lm(item) for item in value] if isinstance(value, list | tuple) else value


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __float__(self) -> float:
        return time.monotonic() - self._began
