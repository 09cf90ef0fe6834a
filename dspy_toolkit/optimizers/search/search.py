"""What every optimizer searches with: the examples, the metered models, a record of the candidates, and the best so far.

The optimizers of DSPy talk a lot and catch broadly. `Search` keeps the books beside them: each candidate's score on the
same validation rows, the calls spent when it was scored, and the best program, the unchanged one included. When the budget
runs out, the best so far stands.

A search that was killed is made again from its beginning, with the cache of replies in place of the model: it makes the
same choices, spends the same logical calls, and comes to the same end as one that was never stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_toolkit.errors import BudgetExhausted, RequestRefused
from dspy_toolkit.evaluation import score_rows
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.metrics import Metric, as_feedback, as_float
from dspy_toolkit.optimizers.search.callback import CheckedMetric, Stopped, Watch
from dspy_toolkit.optimizers.search.output_capture import aloud, quiet
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.store import Frozen

__all__ = ["Progress", "Search", "Stopwatch", "Trial", "prompt_of"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Told (logical calls spent, calls granted, what is going on), from any thread."""
BASELINE = "baseline"
"""The label of the program before the search, its first candidate."""


class Trial(Frozen):
    """One candidate."""

    label: str
    val_mean: float
    lm_calls: int
    """Logical calls spent when it had been scored."""
    arm: str = ""
    """The optimizer that made it."""
    tokens: float = 0.0
    """Of the prompts of one run, on average."""
    seconds: float = 0.0
    """Latency of one run, on average, by the calls that no cache answered; 0 when a cache answered all."""


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
    seed: int
    threads: int
    lm_calls: int
    """The budget."""
    name: str = ""
    """Of the optimizer, for the record."""
    progress: Progress | None = None
    start: dspy.Module | None = None
    """What an optimizer starts from, where that is not the baseline; see `begin_from`."""
    trials: list[Trial] = field(default_factory=list)
    best: dspy.Module | None = None
    best_mean: float = -1.0
    baseline: float = 0.0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self._doing = "starting"
        self.lm: MeteredLM = self.connection.lm.metered(self.lm_calls, self._tell)
        # One meter for all models: the budget is theirs together.
        self.reflection_lm, self.teacher_lm = self.connection.reflection.copy(), self.connection.teacher.copy()
        self.reflection_lm.meter = self.teacher_lm.meter = self.lm.meter
        self.float_metric = CheckedMetric(as_float(self.metric))
        """For BootstrapFewShot and MIPROv2."""
        self.feedback_metric = CheckedMetric(as_feedback(self.metric))
        """For GEPA."""

    @property
    def meter(self) -> Meter:
        """The counters of this compilation."""
        return self.lm.meter

    def student(self) -> dspy.Module:
        """A copy of the program that is started from, for an optimizer to change."""
        student = (self.start or self.program).deepcopy()
        # DSPy refuses to start from a program that it has compiled before.
        student._compiled = False
        return student

    def teacher(self) -> dspy.Module:
        """A copy of the best program so far, to make demonstrations with."""
        teacher = (self.best or self.program).deepcopy()
        # Else DSPy would put other labelled rows before each question: prompts that share nothing.
        teacher._compiled = True
        return teacher

    def begin_from(self, program: dspy.Module, label: str) -> None:
        """Score the baseline, then `program`, and start from the better of the two.

        Where the budget ends before both are scored, `exhausted` says so.
        """
        self.score_baseline()
        if not self.exhausted:
            self.score(program.deepcopy(), label)
        self.start = self.best

    def score_baseline(self) -> None:
        """Score the baseline, unless that is done."""
        if not self.trials:
            self.score(self.program.deepcopy(), BASELINE)

    def say(self, doing: str) -> None:
        """What is going on, for the progress display."""
        self._doing = doing
        self._tell(self.meter.usage.lm_calls)

    def _tell(self, spent: int) -> None:
        if self.progress is not None:
            with aloud():
                self.progress(spent, self.lm_calls, self._doing)

    def score(self, candidate: dspy.Module, label: str) -> float | None:
        """The candidate's mean on the validation rows; None when it has none: the budget ran out first, or its prompt
        does not fit the model.

        Raises:
            MetricError: the metric fails on more than a tenth of the rows.
            RequestRefused: the prompts of the baseline do not fit the model.
        """
        self.say(label)
        since = self.meter.usage
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
        except RequestRefused as error:
            if not self.trials:
                raise
            log.warning("%s is left out: %s", label, error)
            return None
        mean = sum(row.value for row in rows) / len(rows)
        self.note(candidate, label, mean, since)
        return mean

    def note(self, candidate: dspy.Module, label: str, mean: float, since: Usage) -> None:
        """Enter a candidate with its mean on the validation rows; the first one is the baseline.

        Args:
            since: the meter, as it was before the candidate ran on them.
        """
        if not self.trials:
            self.baseline = mean
        now = self.meter.usage
        runs, asked = len(self.val), now - since
        latency = asked.seconds / asked.physical_calls if asked.physical_calls else 0.0
        self.trials.append(
            Trial(
                label=label,
                val_mean=mean,
                lm_calls=now.lm_calls,
                arm=self.name,
                tokens=asked.prompt_tokens / runs,
                seconds=latency * asked.lm_calls / runs,
            )
        )
        # Equal is not better: of two that score alike the earlier, the baseline first of all, is kept.
        if mean > self.best_mean:
            self.best, self.best_mean = candidate, mean
        self.say(f"{label}: {mean:.0%}")

    def attempt(
        self, compile_: Callable[..., dspy.Module], *args: Any, metric: CheckedMetric, candidates: str, **kwargs: Any
    ) -> dspy.Module | None:
        """Run an optimizer of DSPy's, off the terminal. What it evaluates on `val` is noted when it has been.

        Args:
            compile_: the optimizer's `compile`, called with `args` and `kwargs`.
            metric: the one that it scores with.
            candidates: what to call them: `trial` gives "trial 1", …

        Returns:
            What it returned; None when the budget's end, or a reflection that cannot be read, ended it.

        Raises:
            ToolkitError, LMError: the model failed.
            MetricError: the metric fails on more than a tenth of its runs.
        """
        student = prompt_of(self.start) if self.start is not None else None

        def seen(program: dspy.Module, mean: float, since: Usage) -> None:
            # An optimizer evaluates its student first, which has its entry already where it was begun from.
            if student is not None and prompt_of(program) == student:
                return
            # What it is made of, not itself: GEPA gives programs another `forward` while it evaluates them.
            made = fill(self.program.deepcopy(), state_of(program))
            self.note(made, f"{candidates} {len(self.trials)}" if self.trials else BASELINE, mean, since)

        watch = Watch(self.val, metric, self.meter, seen)
        callbacks = [*dspy.settings.get("callbacks", []), watch]
        with (
            quiet(),
            dspy.context(lm=self.lm, adapter=self.connection.adapter, num_threads=self.threads, callbacks=callbacks),
        ):
            try:
                return compile_(*args, **kwargs)
            except Stopped:
                self._close(watch)
                watch.wait()
                self.exhausted = watch.fault is None
            except AdapterParseError as error:
                # The proposer's: the optimizers take those of the program for wrong answers.
                log.warning("The reflection model's reply cannot be read: %r", str(error.lm_response)[:200])
            except BaseException:
                self._close(watch)
                raise
        if watch.fault is not None:
            raise watch.fault
        return None

    def _close(self, watch: Watch) -> None:
        """Let no further call begin: DSPy leaves threads behind that work through what was queued."""
        watch.over = True
        self.meter.limit = self.meter.usage.lm_calls


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __float__(self) -> float:
        return time.monotonic() - self._began
