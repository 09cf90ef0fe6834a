"""What every optimizer searches with: the examples, the metered models, a record of the candidates, and the best so
far.

`Search` keeps its own record beside DSPy's optimizers: each candidate's score on the same validation rows, the calls
spent until then, and the best program, the baseline included. When the budget runs out, the best so far is the result.

A search that was killed starts again from the beginning, with the cache of replies in place of the model: it makes the
same choices, spends the same logical calls, and ends with the same result as one that was never stopped.
"""

from __future__ import annotations

import logging
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
from dspy_toolkit.optimizers.search.callback import CheckedMetric, SearchCallback, SearchStopped
from dspy_toolkit.optimizers.search.output_capture import capture_disabled, capture_output
from dspy_toolkit.optimizers.states import fill, prompt_of, state_of
from dspy_toolkit.store import Frozen

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
    """Logical calls spent until it had been scored."""
    arm: str = ""
    """The optimizer that made it."""
    tokens: float = 0.0
    """Prompt tokens of one run, on average."""
    seconds: float = 0.0
    """Latency of one run, on average, from the calls that no cache answered; 0 when the cache answered all."""


@dataclass
class Search:
    """One run of one optimizer."""

    program: dspy.Module
    """The baseline; never changed."""
    train: list[dspy.Example]
    val: list[dspy.Example]
    """The rows that candidates are compared on."""
    val_keys: list[str]
    metric: Metric
    connection: Connection
    seed: int
    threads: int
    lm_calls: int
    """The budget, in logical calls."""
    name: str = ""
    """Name of the optimizer, for the record."""
    progress: Progress | None = None
    start: dspy.Module | None = None
    """The program that the optimizer starts from, where that is not the baseline; see `begin_from`."""
    trials: list[Trial] = field(default_factory=list)
    best: dspy.Module | None = None
    best_mean: float = -1.0
    baseline: float = 0.0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self._doing = "starting"
        self.lm: MeteredLM = self.connection.lm.metered(self.lm_calls, self._tell)
        # One meter for all models: they share the budget.
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
        """A copy of the program to start from, for an optimizer to change."""
        student = (self.start or self.program).deepcopy()
        # DSPy refuses to start from a program that it has compiled before.
        student._compiled = False
        return student

    def teacher(self) -> dspy.Module:
        """A copy of the best program so far, to make demonstrations with."""
        teacher = (self.best or self.program).deepcopy()
        # Else DSPy puts other labelled rows before each question, and prompts share no prefix.
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
        """Tell the progress display what is going on."""
        self._doing = doing
        self._tell(self.meter.usage.lm_calls)

    def _tell(self, spent: int) -> None:
        if self.progress is not None:
            with capture_disabled():
                self.progress(spent, self.lm_calls, self._doing)

    def score(self, candidate: dspy.Module, label: str) -> float | None:
        """The candidate's mean on the validation rows; None when the budget ran out first, or its prompt does not fit
        the model.

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
            since: the usage before the candidate ran on them.
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
        # Only a higher mean replaces the best: of equal ones the earlier is kept, the baseline before all.
        if mean > self.best_mean:
            self.best, self.best_mean = candidate, mean
        self.say(f"{label}: {mean:.0%}")

    def attempt(
        self, compile_: Callable[..., dspy.Module], *args: Any, metric: CheckedMetric, candidates: str, **kwargs: Any
    ) -> dspy.Module | None:
        """Run an optimizer of DSPy off the terminal, and note every candidate that it evaluates on `val`.

        Args:
            compile_: the optimizer's `compile`, called with `args` and `kwargs`.
            metric: the one that it scores with.
            candidates: the label of the candidates: `trial` gives "trial 1", …

        Returns:
            What it returned; None when it was ended by the budget, or by a reply of the reflection model that cannot be
            parsed.

        Raises:
            ToolkitError, LMError: the model failed.
            MetricError: the metric fails on more than a tenth of its runs.
        """
        student = prompt_of(self.start) if self.start is not None else None

        def seen(program: dspy.Module, mean: float, since: Usage) -> None:
            # An optimizer evaluates its student first; `begin_from` has noted that one already.
            if student is not None and prompt_of(program) == student:
                return
            # A copy made from its state: GEPA replaces `forward` of the programs that it evaluates.
            made = fill(self.program.deepcopy(), state_of(program))
            self.note(made, f"{candidates} {len(self.trials)}" if self.trials else BASELINE, mean, since)

        callback = SearchCallback(self.val, metric, self.meter, seen)
        callbacks = [*dspy.settings.get("callbacks", []), callback]
        with (
            capture_output(),
            dspy.context(lm=self.lm, adapter=self.connection.adapter, num_threads=self.threads, callbacks=callbacks),
        ):
            try:
                return compile_(*args, **kwargs)
            except SearchStopped:
                self._close(callback)
                callback.wait()
                self.exhausted = callback.fault is None
            except AdapterParseError as error:
                # Raised by the proposer: an optimizer counts the program's own parse failures as wrong answers.
                log.warning("The reflection model's reply cannot be read: %r", str(error.lm_response)[:200])
            except BaseException:
                self._close(callback)
                raise
        if callback.fault is not None:
            raise callback.fault
        return None

    def _close(self, callback: SearchCallback) -> None:
        """Let no further call begin: DSPy leaves threads running that work through the queue."""
        callback.over = True
        self.meter.limit = self.meter.usage.lm_calls
