"""Calling a metric: every kind of result becomes one `Score`, and every failure one MetricError.

`score` is how the library calls a metric; `as_float` and `as_feedback` are a metric as DSPy's optimizers take it. A
MetricError names the metric, the row and the value. An error of the language model that a metric asks is not the
metric's: it is raised unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import MetricError, ToolkitError, causes
from dspy_toolkit.metrics.naming import name_of
from dspy_toolkit.metrics.scores import Metric, Score
from dspy_toolkit.user_code import describe_error

if TYPE_CHECKING:
    import dspy

HINTS = ("trace", "pred_name", "pred_trace")
"""What an optimizer tells a metric that has a parameter of that name."""
_ROUNDING = 1e-9
"""How far outside [0, 1] a mean of rounded parts may fall and still count as 0 or 1."""


def score(metric: Metric, example: dspy.Example, prediction: dspy.Prediction, *, row: str = "") -> Score:
    """Call `metric` once.

    Args:
        row: how the row is called in an error, such as `17`.

    Raises:
        MetricError: the metric raised, or returned NaN, a number outside [0, 1], or something that is not a score.
        ToolkitError, LMError: an error of the model or of the budget inside the metric (a judge's) is raised unchanged.
    """
    return call_metric(metric, example, prediction, {}, row)


def as_float(metric: Metric) -> Callable[..., float]:
    """`metric` for BootstrapFewShot and MIPROv2: `(example, prediction, trace=None) -> float`.

    They test whether what a metric returns is true, and a `dspy.Prediction(score=0.0)` is; a float of 0 is not.
    """

    def scored(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return call_metric(metric, example, prediction, {"trace": trace}).value

    # Not functools.wraps: the optimizers look at the signature, and would see the wrapped metric's.
    scored.__name__ = scored.__qualname__ = name_of(metric)
    return scored


def as_feedback(metric: Metric) -> Callable[..., dspy.Prediction]:
    """`metric` for GEPA: `(gold, pred, trace=None, pred_name=None, pred_trace=None)` to a score with feedback."""

    def scored(
        gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        import dspy

        hints = {"trace": trace, "pred_name": pred_name, "pred_trace": pred_trace}
        result = call_metric(metric, gold, pred, hints)
        return dspy.Prediction(score=result.value, feedback=result.feedback or f"The score is {result.value:g} of 1.")

    scored.__name__ = scored.__qualname__ = name_of(metric)
    return scored


def call_metric(
    metric: Metric, example: dspy.Example, prediction: dspy.Prediction, hints: dict[str, Any], row: str = ""
) -> Score:
    """`score`, with the HINTS of an optimizer; the metric is given those that it has parameters for."""
    who = f"metric {name_of(metric)}" + (f" on row {row}" if row else "")
    try:
        result = metric(example, prediction, **{name: hints.get(name) for name in _hints_taken(metric)})
    except Exception as error:  # isolation boundary: a user's metric may raise anything
        if _is_model_error(error):
            raise
        if isinstance(error, MetricError):  # raised by a built-in metric, whose message says what to do
            raise MetricError(f"{who}: {error}") from error
        raise MetricError(f"{who} raised {describe_error(error)}. Correct the metric.") from error
    return _normalize(result, who)


def _hints_taken(metric: Metric) -> list[str]:
    try:
        parameters = inspect.signature(metric).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return []
    return [name for name in HINTS if name in parameters]


def _is_model_error(error: BaseException) -> bool:
    """Whether an error in a metric is a provider's, or was caused by an error of the toolkit (an engine's)."""
    from dspy.utils.exceptions import LMError

    # Only the error itself counts: DSPy answers some with a second call, and they are then causes of a parse error.
    if isinstance(error, LMError):
        return True
    return any(isinstance(cause, ToolkitError) and not isinstance(cause, MetricError) for cause in causes(error))


def _normalize(result: Any, who: str) -> Score:
    if isinstance(result, Score):
        return result
    value, feedback = getattr(result, "score", result), getattr(result, "feedback", None)
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # a numpy or torch scalar
        value = value.item()
    if not isinstance(value, Real):
        raise MetricError(f"{who} returned {_short(result)}. Return a bool, a number in [0, 1] or a Score.")
    number = float(value)
    if math.isnan(number):
        raise MetricError(f"{who} returned NaN. Return 0 where there is nothing to score.")
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise MetricError(f"{who} returned {number}, which is not in [0, 1]. Divide it by its largest value.")
    return Score(value=min(max(number, 0.0), 1.0), feedback="" if feedback is None else str(feedback))


def _short(value: Any, limit: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[:limit]}…"
