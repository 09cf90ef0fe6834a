"""What every generator makes candidates with: the rows, the metered models, DSPy's optimizers off the terminal, and what the
pool has found so far.

A search that was killed starts again from the beginning, with the cache of replies in place of the model: it makes the
same candidates, spends the same logical calls, and ends with the same result as one that was never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_toolkit.finetuning.values import TrainSettings
from dspy_toolkit.lm.ensembles import ensemble_of
from dspy_toolkit.lm.levers import clear, pull
from dspy_toolkit.lm.meter import Meter, MeteredLM
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.metrics import as_feedback, as_float
from dspy_toolkit.optimizers.generators.callback import CheckedMetric, SearchCallback, SearchStopped
from dspy_toolkit.optimizers.generators.output_capture import capture_disabled, capture_output
from dspy_toolkit.optimizers.pool.entry import Made
from dspy_toolkit.optimizers.pool.pool import Pool
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import fill, signature_of, state_of

log = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Told (logical calls spent, calls granted, what is going on), from any thread."""
TEACHING = 4
"""Labelled demonstrations that a teacher is given where the best program so far has none."""


@dataclass(eq=False)
class Workshop:
    """Where the candidates of one search are made."""

    problem: Problem
    profile: Profile
    settings: PoolSettings
    lm_calls: int
    """The budget of the search, in logical calls."""
    usd: float | None = None
    """The budget in dollars, where there is one."""
    progress: Progress | None = None
    pool: Pool | None = None
    """The pool that the candidates go into; None until there is one."""
    exhausted: bool = False
    """Whether the budget ended an optimizer of DSPy."""
    grounds: list[dspy.Module] = field(default_factory=list)
    """Candidates that are the baseline in another format."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Hash of a prompt without demonstrations → the first adapter that was trained under it."""
    winners: dict[str, TrainSettings] = field(default_factory=dict)
    """Such a hash → the settings that won there."""

    def __post_init__(self) -> None:
        problem = self.problem
        self._doing = "starting"
        self.lm: MeteredLM = problem.connection.lm.metered(self.lm_calls, self._tell, self.usd)
        # One meter for all models: they share the budget. Each run of an optimizer has a part of it; see `attempt`.
        self.reflection_lm, self.teacher_lm = problem.connection.reflection.copy(), problem.connection.teacher.copy()
        self.train = problem.cases(problem.train)
        rows = problem.val_sample(self.settings.rungs[0])
        self.first_rows = problem.cases(rows)
        """Validation rows of the first rung, on which GEPA compares its own candidates."""
        self.float_metric = CheckedMetric(as_float(problem.metric))
        """For BootstrapFewShot, MIPROv2 and SIMBA."""
        self.feedback_metric = CheckedMetric(as_feedback(problem.metric))
        """For GEPA."""

    @property
    def meter(self) -> Meter:
        """The counters of this search."""
        return self.lm.meter

    @property
    def leader(self) -> dspy.Module:
        """The candidate to build on; of an ensemble its first member."""
        if self.pool is None:
            return self.problem.program
        program = self.pool.best.program
        if not any(ensemble_of(predictor) for predictor in program.predictors()):
            return program
        alone = program.deepcopy()  # its predictor is the first member, beside having them all
        for predictor in alone.predictors():
            pull(predictor, ensemble=None)
        return alone

    @property
    def seed(self) -> int:
        """What a generator draws by."""
        return self.problem.seed

    @property
    def adapter(self) -> Any:
        """How signatures become prompts."""
        return self.problem.connection.adapter

    @property
    def ground(self) -> dspy.Module:
        """The baseline, in the format that scored best so far."""
        if self.pool is None:
            return self.problem.program
        pool, known = self.pool, {id(program) for program in self.grounds}
        able = [pool.baseline, *(entry for entry in pool.entries if id(entry.program) in known)]
        return max(able, key=lambda entry: (pool.expected(entry), -entry.tokens, -entry.number)).program

    def student(self, *, leading: bool = False) -> dspy.Module:
        """A copy of the baseline in its best format, or of the leader, for an optimizer to change."""
        student = (self.leader if leading else self.ground).deepcopy()
        # DSPy refuses to start from a program that it has compiled before.
        student._compiled = False
        return student

    def base(self, number: int) -> dspy.Module:
        """A copy of the program whose demonstrations candidate `number` replaces: in turn the baseline and the leader.

        The leader's instruction may be better, and may have led by luck alone.
        """
        return self.student(leading=number % 2 == 1)

    def teacher(self, student: dspy.Module, rows: list[dspy.Example]) -> dspy.Module:
        """A program that makes demonstrations from `rows`: `student`, with demonstrations where it has none.

        DSPy's own labelled teacher takes its demonstrations from the rows that it then answers. These come from the others, and
        are the same in every prompt.
        """
        teacher = student.deepcopy()
        if not self.teacher_lm.model.startswith(PREFIX):
            for predictor in teacher.predictors():
                clear(predictor)  # what is best for the task's model says nothing about another
        asked = {id(row) for row in rows}
        others = [case for case in self.train if id(case) not in asked]
        if self.profile.labelled and not teacher.predictors()[0].demos and others:
            for predictor in teacher.predictors():
                predictor.demos = balanced(others, TEACHING, seed=self.seed)
        # Else DSPy gives it others still.
        teacher._compiled = True
        return teacher

    def say(self, doing: str) -> None:
        """Tell the progress display what is going on."""
        self._doing = doing
        self._tell(self.meter.usage.lm_calls)

    def _tell(self, spent: int) -> None:
        if self.progress is not None:
            with capture_disabled():
                self.progress(spent, self.lm_calls, self._doing)

    def attempt(
        self, compile_: Callable[..., T], *args: Any, metric: CheckedMetric, **kwargs: Any
    ) -> tuple[T | None, list[Made]]:
        """Run an optimizer of DSPy off the terminal.

        Args:
            compile_: the optimizer's `compile`, called with `args` and `kwargs`.
            metric: the one that it scores with.

        Returns:
            What it returned (None when it was ended by the budget, or by a reply of the reflection model that cannot be
            parsed), and the programs that it scored on `first_rows`, in that order, without labels.

        Raises:
            ToolkitError, LMError: the model failed.
            MetricError: the metric fails on more than a tenth of its runs.
        """
        scored: list[Made] = []

        def seen(program: dspy.Module, values: list[float], tokens: float) -> None:
            # A copy made from its state: GEPA replaces `forward` of the programs that it evaluates.
            made = fill(self.problem.program.deepcopy(), state_of(program))
            scored.append(Made(made, "", tuple(values), tokens))

        lm = self.lm.part()
        self.reflection_lm.meter = self.teacher_lm.meter = lm.meter
        callback = SearchCallback(self.first_rows, metric, lm.meter, seen)
        callbacks = [*dspy.settings.get("callbacks", []), callback]
        threads = self.problem.threads
        with (
            capture_output(),
            dspy.context(lm=lm, adapter=self.adapter, num_threads=threads, callbacks=callbacks),
        ):
            try:
                return compile_(*args, **kwargs), scored
            except SearchStopped:
                _close(callback, lm.meter)
                callback.wait()
                self.exhausted = callback.fault is None
            except AdapterParseError as error:
                # Raised by the proposer: an optimizer counts the program's own parse failures as wrong answers.
                log.warning("The reflection model's reply cannot be read: %r", str(error.lm_response)[:200])
            except BaseException:
                _close(callback, lm.meter)
                raise
        if callback.fault is not None:
            raise callback.fault
        return None, scored


def _close(callback: SearchCallback, meter: Meter) -> None:
    """Let no further call of this optimizer begin: DSPy leaves threads running that work through the queue."""
    callback.over = True
    meter.limit = meter.usage.lm_calls


def with_parts(program: dspy.Module, instructions: list[str] | None, demos: list[list[Any]] | None) -> dspy.Module:
    """A copy of `program` with the instruction and the demonstrations of each predictor, in order; None leaves them."""
    made = program.deepcopy()
    for number, predictor in enumerate(made.predictors()):
        if instructions is not None:
            predictor.signature = signature_of(predictor).with_instructions(instructions[number])
        if demos is not None:
            predictor.demos = list(demos[number])
            pull(predictor, neighbors=None)  # these take the place of those, too
    return made
