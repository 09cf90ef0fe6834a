"""Bring a DSPy program, a dataset and a metric; get back a better program that has proved it on sealed data.

    from dspy_toolkit import optimize
    result = optimize(program, "rows.csv", metric="exact_match")

Importing this package is instant: everything heavy is imported by the function that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.datasets import DatasetSpec, Fractions
    from dspy_toolkit.errors import ToolkitError
    from dspy_toolkit.lm import connect
    from dspy_toolkit.metrics import Score, exact_match
    from dspy_toolkit.pipeline.optimize import Result, optimize
    from dspy_toolkit.project import Project, load_project, register
    from dspy_toolkit.registry.programs import load_program
    from dspy_toolkit.settings import Settings, load_settings

__all__ = [
    "DatasetSpec",
    "Fractions",
    "Project",
    "Result",
    "Score",
    "Settings",
    "ToolkitError",
    "connect",
    "exact_match",
    "load_program",
    "load_project",
    "load_settings",
    "optimize",
    "register",
]

_WHERE = {
    "DatasetSpec": "datasets",
    "Fractions": "datasets",
    "Project": "project",
    "Result": "pipeline.optimize",
    "Score": "metrics",
    "Settings": "settings",
    "ToolkitError": "errors",
    "connect": "lm",
    "exact_match": "metrics",
    "load_program": "registry.programs",
    "load_project": "project",
    "load_settings": "settings",
    "optimize": "pipeline.optimize",
    "register": "project",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"dspy_toolkit.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'dspy_toolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
