"""What a good answer is: scores, the built-in metrics, how metrics are combined, and each optimizer's view of one.

A metric takes an example and a prediction and returns a bool, a number in [0, 1], a `Score`, or a
`dspy.Prediction(score=, feedback=)`. It may also take `trace`, `pred_name` and `pred_trace`, by those names, as DSPy's
optimizers pass them; they are None in an evaluation. One metric serves every optimizer.

scores      what a metric returns
fields      the outputs of an example, one after the other
answers     comparing texts and numbers: exact_match, token_f1, numeric_closeness
structures  comparing sets and JSON: set_overlap, json_fields
asking      which model a judge asks, and how its reply is read
judging     a language model as a judge, by a rubric
pairwise    a language model that compares two answers, in both orders
composites  several metrics in one: weights and constraints
calling     calling any metric; the views for the optimizers
naming      a metric's name for people, and its text for fingerprints
resolving   finding a metric by its name or its table
pareto      the Pareto front of several programs

Not covered: asynchronous metrics, and metrics over a whole split at once
(`dspy_toolkit.evaluation` has macro-F1 and a judge's agreement with people).
"""

from __future__ import annotations

from dspy_toolkit.metrics.answers import exact_match, numeric_closeness, token_f1
from dspy_toolkit.metrics.calling import as_feedback, as_float, score
from dspy_toolkit.metrics.composites import Weighted, weighted
from dspy_toolkit.metrics.judging import Judge, judge
from dspy_toolkit.metrics.naming import BUILT_IN, models_of, name_of, outputs_needed, source_of
from dspy_toolkit.metrics.pairwise import Pairwise, Preference, pairwise
from dspy_toolkit.metrics.pareto import Objectives, pareto_front
from dspy_toolkit.metrics.resolving import resolve_metric, with_options
from dspy_toolkit.metrics.scores import Metric, Score
from dspy_toolkit.metrics.structures import json_fields, set_overlap

__all__ = [
    "BUILT_IN",
    "Judge",
    "Metric",
    "Objectives",
    "Pairwise",
    "Preference",
    "Score",
    "Weighted",
    "as_feedback",
    "as_float",
    "exact_match",
    "json_fields",
    "judge",
    "models_of",
    "name_of",
    "numeric_closeness",
    "outputs_needed",
    "pairwise",
    "pareto_front",
    "resolve_metric",
    "score",
    "set_overlap",
    "source_of",
    "token_f1",
    "weighted",
    "with_options",
]
