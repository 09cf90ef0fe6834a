"""The specification's engine of optimizers over `dspy_toolkit.optimize`: the gate decides what comes back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspy_toolkit.compat.configuration import metric_of
from dspy_toolkit.datasets import Fractions
from dspy_toolkit.optimizers import Choice, Profile, find_budget
from dspy_toolkit.pipeline.optimize import Result, optimize
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.lm import Connection

STEPS = {"low": 1, "medium": 1, "high": 3}
"""Complexity → predictors that a program of it is taken to have."""
ASSUMED_SCORE = 0.5
"""Of a program that nobody has run: neither too good to be better, nor too bad to be bootstrapped."""


@dataclass
class OptimizationResult:
    """What an optimization did."""

    optimizer_used: str
    """Which generator made the program; `baseline` where nothing was better."""
    original_performance: dict[str, float]
    """Metric → mean score in [0, 1], on the sealed rows where they were opened, else on validation rows."""
    optimized_performance: dict[str, float]
    optimization_time: float
    """Seconds."""
    num_examples_used: int
    metadata: dict[str, Any] = field(default_factory=dict)
    """`improved`: whether it passed the gate; `reason`: one sentence; `lm_calls` of the search."""


class OptimizerEngine:
    """Optimizes modules, and keeps what each optimization did."""

    def __init__(self, settings: Settings, connection: Connection | None = None) -> None:
        self._settings, self._connection = settings, connection
        self.optimization_history: list[OptimizationResult] = []
        self.choice: Choice | None = None
        """The last one of `select_optimizer`, with its reason and what speaks against the others."""

    def select_optimizer(self, task_type: str = "general", dataset_size: int = 0, complexity: str = "medium") -> str:
        """What would be chosen for a program that nobody has run, from the rows alone.

        `optimize` chooses anew, from what thirty runs of the program show: which optimizer is right follows from how often it
        is right, what a run costs and whether a model can reflect, and from neither the task's type nor a word for its complexity.

        Args:
            task_type: not taken.
            dataset_size: rows.
            complexity: `low`, `medium` or `high`: how many steps the program is taken to have.

        Returns:
            `auto`: those that fit compete in one pool (`choice.settings.generators`).

        Raises:
            OptimizerError: nothing can run with so few rows.
        """
        from dspy_toolkit.optimizers import select

        steps, shares = STEPS.get(complexity, STEPS["medium"]), Fractions()
        profile = Profile(
            train=int(dataset_size * shares.train),
            val=int(dataset_size * shares.val),
            probed=0,
            baseline=ASSUMED_SCORE,
            pass_rate=ASSUMED_SCORE,
            parse_failures=0,
            metric_errors=0,
            graded=False,
            feedback=False,
            predictors=steps,
            calls_per_run=steps,
            prompt_tokens=0,
            completion_tokens=0,
            seconds_per_call=0,
            reflector_ok=True,
            reflector_note="taken to be usable",
        )
        self.choice = select(profile, "auto", find_budget(self._settings.optimize.budget))
        return self.choice.optimizer

    def optimize(
        self,
        module: dspy.Module,
        dataset: Iterable[Mapping[str, Any]],
        metrics: Sequence[str] = ("accuracy",),
        task_type: str = "general",
    ) -> dspy.Module:
        """A better module, if one passes the gate on rows that no search has read; else a copy of `module`.

        Args:
            dataset: rows as dictionaries or examples, with a column for each field.
            metrics: `accuracy`, `f1`, or the toolkit's names; several count the same.
            task_type: not taken.

        Raises:
            DatasetError, ProjectError, MetricError, OptimizerError, ModelError: with what to do about it.
        """
        rows = list(dataset)
        began = time.perf_counter()
        result = optimize(
            module,
            rows,
            metric_of(metrics),
            self._settings.optimize.optimizer,
            self._settings.optimize.budget,
            settings=self._settings,
            connection=self._connection,
        )
        self.optimization_history.append(_told(result, metrics, len(rows), time.perf_counter() - began))
        return result.program


def _told(result: Result, metrics: Sequence[str], rows: int, seconds: float) -> OptimizationResult:
    sealed, compiled = result.comparison.sealed, result.compiled
    before, after = result.profile.baseline, result.profile.baseline
    if sealed is not None:
        before, after = sealed.champion.mean, sealed.candidate.mean
    elif compiled.trials:
        before, after = compiled.val_baseline, compiled.val_mean
    name = " + ".join(metrics)
    said = {"improved": result.improved, "reason": result.reason, "lm_calls": compiled.usage.lm_calls}
    return OptimizationResult(compiled.winner, {name: before}, {name: after}, seconds, rows, said)
