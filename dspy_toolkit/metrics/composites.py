"""Several metrics in one: a weighted mean, and constraints; an answer that fails one scores 0.

Covered: any metrics, composites among them; each is called once for each row, whatever the others said, so that
every row costs the same number of LM calls; the optimizers' hints go to every part. Not covered: constraints on tokens
or seconds, which are a program's and not a row's (see `pareto_front`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics.calling import call_metric
from dspy_toolkit.metrics.naming import name_of
from dspy_toolkit.metrics.scores import Metric, Score

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True)
class Weighted:
    """A metric made of others; `weighted` makes it."""

    of: tuple[tuple[Metric, float], ...]
    """(metric, weight); the weights are above 0, and only their ratio counts."""
    require: tuple[tuple[Metric, float], ...] = ()
    """(metric, the least score that meets the constraint, in (0, 1])."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All parts."""
        return tuple(metric for metric, _ in (*self.of, *self.require))

    @property
    def metric_name(self) -> str:
        """Such as `weighted(0.7 token_f1, 0.3 own:style; requires own:valid)`."""
        text = ", ".join(f"{weight:g} {name_of(metric)}" for metric, weight in self.of)
        if self.require:
            held = (name_of(metric) + (f" >= {least:g}" if least < 1 else "") for metric, least in self.require)
            text += f"; requires {', '.join(held)}"
        return f"weighted({text})"

    def __call__(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
    ) -> Score:
        """The weighted mean; 0 when a constraint fails, and the feedback begins with that."""
        hints = {"trace": trace, "pred_name": pred_name, "pred_trace": pred_trace}
        said, failed, measures = [], False, {}
        for metric, least in self.require:
            result = call_metric(metric, example, prediction, hints)
            measures |= result.measures
            if result.value < least:
                failed = True
                said.append(
                    f"A requirement is not met, so the score is 0: {name_of(metric)} is {result.value:g} and must be "
                    f"at least {least:g}. {result.feedback}".strip()
                )
        total = value = 0.0
        for metric, weight in self.of:
            result = call_metric(metric, example, prediction, hints)
            measures |= result.measures
            total, value = total + weight, value + weight * result.value
            said.append(f"{name_of(metric)}: {result.value:.2f}. {result.feedback}".strip())
        return Score(value=0 if failed else min(value / total, 1.0), feedback="\n".join(said), measures=measures)


def weighted(
    of: Iterable[Metric | tuple[Metric, float]], require: Iterable[Metric | tuple[Metric, float]] = ()
) -> Weighted:
    """The mean of some metrics by weight, under constraints.

    Args:
        of: metrics, each alone (weight 1) or with its weight, above 0; only the ratio of the weights counts.
        require: constraints: metrics, each alone (it must score 1) or with its least score, in (0, 1]. Where
            one fails, the score is 0 and the feedback says so first.

    Raises:
        ProjectError: no metric in `of`, something that is no metric, or a number out of range.
    """
    parts = tuple(_pair(entry, "weight", float("inf")) for entry in of)
    if not parts:
        raise ProjectError("metric weighted: of is empty. Give it at least one metric.")
    return Weighted(parts, tuple(_pair(entry, "at_least", 1) for entry in require))


def _pair(entry: Any, what: str, most: float) -> tuple[Metric, float]:
    metric, number = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1)
    if not callable(metric):
        raise ProjectError(
            f"metric weighted: {metric!r} is no metric. Give a function, or one of the built-in metrics."
        )
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not (0 < number <= most and number < float("inf"))
    ):
        limits = "in (0, 1]" if most == 1 else "above 0"
        raise ProjectError(f"metric weighted: {what} of {name_of(metric)} is {number!r}. Give a number {limits}.")
    return metric, float(number)
