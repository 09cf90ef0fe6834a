"""What a good answer is: scores, the built-in metrics, and each optimizer's view of a metric.

A metric takes an example and a prediction and returns a bool, a number in [0, 1], a `Score`, or a
`dspy.Prediction(score=, feedback=)`. It may also take `trace`, `pred_name` and `pred_trace`, by those names, as DSPy's
optimizers pass them; they are None in an evaluation. `score` brings every kind of answer to one `Score` and every
fault to one MetricError, which names the metric, the row and the value.

Not covered: asynchronous metrics, and metrics over a whole split at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from dspy_toolkit.errors import MetricError, ProjectError, ToolkitError, nearest
from dspy_toolkit.sources import PREFIX, explain, import_named, text_of
from dspy_toolkit.store import Value

if TYPE_CHECKING:
    import dspy

Metric: TypeAlias = Callable[..., Any]
"""`(example, prediction) -> bool | float | Score | dspy.Prediction(score=, feedback=)`; see the module's docstring."""

_HINTS = ("trace", "pred_name", "pred_trace")
_ROUNDING = 1e-9
"""How far outside [0, 1] a mean of rounded parts may fall and still count as 0 or 1."""


class Score(Value):
    """How good one answer is, and why."""

    value: float = Field(ge=0, le=1)
    """0 is worst, 1 is best."""
    feedback: str = ""
    """What was wrong and what would have been right, for the model that writes instructions."""


def exact_match(example: dspy.Example, prediction: dspy.Prediction) -> Score:
    """1 when every output of `example` is answered as it stands there, else 0.

    Strings are compared without case and outer spaces, enum members by their value, anything else with `==`.

    Raises:
        MetricError: `example` has no output.
    """
    labels = dict(example.labels().items())
    if not labels:
        raise MetricError("the example has no output to compare with")
    wrong = []
    for name, expected in labels.items():
        if name not in prediction:
            wrong.append(f"{name}: expected {_plain(expected)!r}, got no answer.")
        elif _comparable(prediction[name]) != _comparable(expected):
            wrong.append(f"{name}: expected {_plain(expected)!r}, got {_plain(prediction[name])!r}.")
    return Score(value=0, feedback=" ".join(wrong)) if wrong else Score(value=1, feedback="Right.")


BUILT_IN: dict[str, Metric] = {"exact_match": exact_match}
"""The metrics that a project may name without a module."""


def score(metric: Metric, example: dspy.Example, prediction: dspy.Prediction, *, row: str = "") -> Score:
    """Call `metric` once.

    Args:
        row: how the row is called in an error, such as `17`.

    Raises:
        MetricError: the metric raised, or returned NaN, a number outside [0, 1], or something that is not a score.
        ToolkitError: an error of the engine or of the budget inside the metric (a judge's) passes as it came.
    """
    return _call(metric, example, prediction, {}, row)


def as_float(metric: Metric) -> Callable[..., float]:
    """`metric` for BootstrapFewShot and MIPROv2: `(example, prediction, trace=None) -> float`.

    They take the truth of what a metric returns, and a `dspy.Prediction(score=0.0)` is true; a float is not.
    """

    def scored(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return _call(metric, example, prediction, {"trace": trace}, "").value

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
        result = _call(metric, gold, pred, hints, "")
        return dspy.Prediction(score=result.value, feedback=result.feedback or f"The score is {result.value:g} of 1.")

    scored.__name__ = scored.__qualname__ = name_of(metric)
    return scored


def source_of(metric: Metric) -> str:
    """A text for fingerprints: it changes with the metric's code, and is the same on every machine."""
    return text_of(metric)


def name_of(metric: Metric) -> str:
    """The name of a metric for people and manifests: `exact_match`, or `module:function`."""
    for name, built_in in BUILT_IN.items():
        if metric is built_in:
            return name
    metric = getattr(metric, "func", metric)  # of a functools.partial
    function = metric if hasattr(metric, "__qualname__") else type(metric)
    module = function.__module__ or ""
    if module.startswith(PREFIX):  # imported from a file, under a name made from its path
        module = module.removeprefix(PREFIX).partition(".")[0].rpartition("_")[0]
    return f"{module}:{function.__qualname__}"


def resolve_metric(name_or_callable: str | Metric, folder: Path | None) -> Metric:
    """Find a metric: a callable is itself; `exact_match` is built in; `module:function` is imported.

    Args:
        folder: where the module is looked for first; then among the installed packages.

    Raises:
        ProjectError: no such metric (with the nearest names), or its module cannot be imported.
    """
    if not isinstance(name_or_callable, str):
        return name_or_callable
    module_name, colon, attribute = name_or_callable.partition(":")
    if not colon:
        if metric := BUILT_IN.get(name_or_callable):
            return metric
        raise ProjectError(
            f"metric {name_or_callable!r} is not built in.{nearest(name_or_callable, BUILT_IN)} "
            'For your own, write "module:function".'
        )
    if not module_name or not attribute:
        raise ProjectError(f'metric {name_or_callable!r} is not of the form "module:function".')
    module = import_named(module_name, folder)
    metric = getattr(module, attribute, None)
    if not callable(metric):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
        what = "no function" if metric is None else f"{metric!r}, not a function, as"
        raise ProjectError(
            f"metric {name_or_callable!r}: {module_name} has {what} {attribute}.{nearest(attribute, known)}"
        )
    return metric


def _call(metric: Metric, example: dspy.Example, prediction: dspy.Prediction, hints: dict[str, Any], row: str) -> Score:
    who = f"metric {name_of(metric)}" + (f" on row {row}" if row else "")
    try:
        result = metric(example, prediction, **{name: hints.get(name) for name in _hints_taken(metric)})
    except Exception as error:  # isolation boundary: a user's metric may raise anything
        if _came_from_below(error):
            raise
        raise MetricError(f"{who} raised {explain(error)}. Correct the metric.") from error
    return _normalize(result, who)


def _hints_taken(metric: Metric) -> list[str]:
    try:
        parameters = inspect.signature(metric).parameters
    except (TypeError, ValueError):  # some callables written in C do not tell
        return []
    return [name for name in _HINTS if name in parameters]


def _came_from_below(error: BaseException | None) -> bool:
    """Whether an error of the toolkit, such as the engine's, lies under one that a metric let through."""
    while error is not None:
        if isinstance(error, ToolkitError) and not isinstance(error, MetricError):
            return True
        error = error.__cause__ or error.__context__
    return False


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


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _comparable(value: Any) -> Any:
    value = _plain(value)
    return value.strip().casefold() if isinstance(value, str) else value
