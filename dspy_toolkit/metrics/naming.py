"""What a metric is called, what stands for it in a fingerprint, and what it needs.

A metric may be a function, a `functools.partial` that binds its options, or a callable object. One that is made of
others lists them in `metrics`; one with a name other than its function's has a `metric_name`; one that asks a model of
its own has the name of it in `model`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from dspy_toolkit.metrics.answers import exact_match, numeric_closeness, token_f1
from dspy_toolkit.metrics.scores import Metric
from dspy_toolkit.metrics.structures import json_fields, set_overlap
from dspy_toolkit.user_sources import PREFIX, text_of

BUILT_IN: dict[str, Metric] = {
    "exact_match": exact_match,
    "json_fields": json_fields,
    "numeric_closeness": numeric_closeness,
    "set_overlap": set_overlap,
    "token_f1": token_f1,
}
"""The metrics that a project may name without a module. Each compares an answer with the outputs of the example."""
SHOWN = 60
"""Characters of an option's value in a name."""


def name_of(metric: Metric) -> str:
    """The name of a metric for people and manifests: `exact_match`, `module:function`, `token_f1(fields=('answer',))`."""
    if name := getattr(metric, "metric_name", None):
        return str(name)
    if isinstance(metric, functools.partial):
        options = [_short(value) for value in metric.args]
        options += [f"{key}={_short(value)}" for key, value in metric.keywords.items()]
        return f"{name_of(metric.func)}({', '.join(options)})"
    for name, built_in in BUILT_IN.items():
        if metric is built_in:
            return name
    function: Any = metric if hasattr(metric, "__qualname__") else type(metric)
    module = function.__module__ or ""
    if module.startswith(PREFIX):  # imported from a file, under a name made from its path
        module = module.removeprefix(PREFIX).partition(".")[0].rpartition("_")[0]
    return f"{module}:{function.__qualname__}"


def source_of(metric: Metric) -> str:
    """A text for fingerprints: it changes with the metric's code and options, and is the same on every machine."""
    return text_of(metric)


def models_of(metric: Metric) -> tuple[str, ...]:
    """The models that the judges in `metric` name, sorted; a judge that takes the program's model names none."""
    return tuple(sorted({model for part in _walk(metric) if isinstance(model := getattr(part, "model", None), str)}))


def outputs_needed(metric: Metric) -> dict[str, tuple[str, ...]]:
    """The built-in metrics in `metric` that compare with outputs: name → the outputs that they name, or none for all."""
    needed: dict[str, tuple[str, ...]] = {}
    for part in _walk(metric):
        options: dict[str, Any] = {}
        while isinstance(part, functools.partial):
            options, part = {**part.keywords, **options}, part.func
        for name, built_in in BUILT_IN.items():
            if part is built_in:
                needed[name] = (*needed.get(name, ()), *options.get("fields", ()))
    return needed


def _walk(metric: Metric) -> Iterator[Metric]:
    """A metric and all those that it is made of."""
    yield metric
    for part in getattr(metric, "metrics", ()):
        yield from _walk(part)


def _short(value: Any) -> str:
    text = name_of(value) if callable(value) else " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
