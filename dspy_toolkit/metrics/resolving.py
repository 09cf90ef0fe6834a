"""Finding a metric: by its name, or from the table of a project's file, options and parts included.

    metric = "token_f1"                                             # built in
    metric = "own:close"                                            # a function of the module own
    metric = { name = "numeric_closeness", tolerance = 0.05 }       # with options; those of "own:close" too
    metric = { name = "judge", rubric = "…", model = "openai/gpt-4o" }

    [metric]
    name = "weighted"
    of = [{ name = "token_f1", weight = 0.7 }, { name = "own:style", weight = 0.3 }]
    require = ["own:valid", { name = "set_overlap", fields = ["tags"], at_least = 0.5 }]

An unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.metrics.calling import HINTS
from dspy_toolkit.metrics.composites import weighted
from dspy_toolkit.metrics.judging import judge
from dspy_toolkit.metrics.naming import BUILT_IN, name_of
from dspy_toolkit.metrics.pairwise import pairwise
from dspy_toolkit.metrics.scores import Metric
from dspy_toolkit.user_code import describe_error, import_named

_MADE = {
    "judge": 'name = "judge", rubric = "…"',
    "pairwise": 'name = "pairwise", rubric = "…"',
    "weighted": 'name = "weighted", of = ["…"]',
}
"""Metrics that need options, with the shortest table of each."""


def resolve_metric(name_or_callable: str | Mapping[str, Any] | Metric, folder: Path | None) -> Metric:
    """Find a metric: a callable is itself; `exact_match` is built in; `module:function` is imported; a table has a name
    and options (see the module's docstring).

    Args:
        folder: where the module is looked for first; then among the installed packages.

    Raises:
        ProjectError: no such metric (with the nearest names), its module cannot be imported, or an option does not fit.
    """
    if isinstance(name_or_callable, Mapping):
        return _from_table(name_or_callable, folder)
    if not isinstance(name_or_callable, str):
        return name_or_callable
    if not name_or_callable.partition(":")[1]:
        return _built_in(name_or_callable)
    return _imported(name_or_callable, folder)


def with_options(metric: Metric, **options: Any) -> Metric:
    """`metric` with some of its options bound: `with_options(numeric_closeness, tolerance=0.05)`.

    Args:
        options: by the names of the metric's parameters after example and prediction. A class is called with them, and
            the instance is the metric.

    Raises:
        ProjectError: no such option (with the nearest), or a value that does not fit.
    """
    if not options:
        return metric
    who = f"metric {name_of(metric)}"
    if isinstance(metric, type):
        try:
            return metric(**options)
        except Exception as error:  # isolation boundary: a user's class may raise anything
            raise ProjectError(f"{who} cannot be made: {describe_error(error)}. Correct its options.") from error
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return functools.partial(metric, **options)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        _check_names(who, options, [parameter.name for parameter in parameters[2:] if parameter.name not in HINTS])
    if metric in BUILT_IN.values():
        options = {name: _fitting(who, metric, name, value) for name, value in options.items()}
    return functools.partial(metric, **options)


def _built_in(name: str) -> Metric:
    if name in _MADE:
        raise ProjectError(f"metric {name!r} needs options. Write a table: metric = {{ {_MADE[name]} }}.")
    if metric := BUILT_IN.get(name):
        return metric
    known = [*BUILT_IN, *_MADE]
    raise ProjectError(f'metric {name!r} is not built in.{nearest(name, known)} For your own, write "module:function".')


def _imported(name: str, folder: Path | None) -> Metric:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ProjectError(f'metric {name!r} is not of the form "module:function".')
    module = import_named(module_name, folder)
    metric = getattr(module, attribute, None)
    if not callable(metric):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
        what = "no function" if metric is None else f"{metric!r}, not a function, as"
        raise ProjectError(f"metric {name!r}: {module_name} has {what} {attribute}.{nearest(attribute, known)}")
    return metric


def _from_table(table: Mapping[str, Any], folder: Path | None) -> Metric:
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ProjectError(f"metric {options!r} has no name.{nearest('', [*BUILT_IN, *_MADE])}")
    if name == "weighted":
        _check_names("metric weighted", options, ["of", "require"])
        return weighted(
            _parts(options.get("of", ()), "of", "weight", folder),
            _parts(options.get("require", ()), "require", "at_least", folder),
        )
    if name == "judge":
        _check_names("metric judge", options, ["rubric", "model", "scale", "fields", "repeats", "reduce"])
        return judge(**{"rubric": None, **options})
    if name == "pairwise":
        _check_names("metric pairwise", options, ["rubric", "model", "fields"])
        return pairwise(**{"rubric": None, **options})
    return with_options(resolve_metric(name, folder), **options)


def _parts(entries: Any, key: str, number: str, folder: Path | None) -> Iterable[tuple[Metric, Any]]:
    """(metric, number) of each entry of `of` or `require`; a name by itself has the number 1."""
    if not isinstance(entries, list | tuple):
        raise ProjectError(f'metric weighted: {key} is {entries!r}. Write a list: {key} = ["…"].')
    for position, entry in enumerate(entries, start=1):
        try:
            if isinstance(entry, Mapping):
                table = {name: value for name, value in entry.items() if name != number}
                yield _from_table(table, folder), entry.get(number, 1)
            else:
                yield resolve_metric(entry, folder), 1
        except ProjectError as error:
            raise ProjectError(f"metric weighted, {key}, entry {position}: {error}") from error


def _check_names(who: str, options: Mapping[str, Any], known: list[str]) -> None:
    for name in options:
        if name not in known:
            hint = nearest(name, known) if known else " It takes none."
            raise ProjectError(f"{who} has no option {name!r}.{hint}")


def _fitting(who: str, metric: Callable[..., Any], name: str, value: Any) -> Any:
    """`value` as the type that a built-in metric declares for its option, or a ProjectError."""
    # The signatures name DSPy's types too; DSPy is not imported to check an option.
    unread = SimpleNamespace(Example=object, Prediction=object)
    hints = typing.get_type_hints(metric, localns={"dspy": unread}, include_extras=True)
    try:
        return TypeAdapter(hints[name]).validate_python(value)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        if said["type"] == "tuple_type":
            raise ProjectError(f'{who}: {name} is {value!r}. Write a list: {name} = ["…"].') from None
        raise ProjectError(f"{who}: {name} is {value!r}. {said['msg'].rstrip('.')}.") from None
