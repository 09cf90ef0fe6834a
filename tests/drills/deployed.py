"""The flow as a deployment of the drills has it: `flows.optimize_program`, with the fault that waits for its project.

A fault is a file, DRILL_FAULTS/PROJECT.json, as `optimization.faulty` takes it. The first run of the project takes it when it
begins, so that a later one runs undisturbed. Everything else, also where nothing waits, is the flow as it is.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import flows  # noqa: F401  (points Prefect at its home before it is imported)
from tests.drills.optimization import STEPS, Reached, faulty

_until_the_end = ExitStack()
atexit.register(_until_the_end.close)
_reached: list[Reached] = []


def take_fault(project: str) -> None:
    """Do from now on what the file of the project says, if there is one; another run finds it no more."""
    waiting = Path(os.environ["DRILL_FAULTS"], f"{project}.json")
    taken = waiting.with_suffix(".taken")
    try:
        waiting.rename(taken)
    except FileNotFoundError:
        return
    _reached.append(_until_the_end.enter_context(faulty(json.loads(taken.read_text()))))


def around(function: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the pipeline, with its beginning and its end told to the fault."""

    @wraps(function)
    def call(context: Any, *given: Any) -> Any:
        if function.__name__ == "resolve":
            take_fault(context.project.name)
        for reached in _reached:
            reached(f"before {function.__name__}")
        found = function(context, *given)
        for reached in _reached:
            reached(f"after {function.__name__}")
        return found

    return call


for _name in STEPS:
    # `release` has the baseline's too.
    _module = importlib.import_module(f"dspy_toolkit.pipeline.{_name.removesuffix('_baseline')}")
    setattr(_module, _name, around(getattr(_module, _name)))

# After that: the tasks are made of what these modules hold now.
from flows.optimize_program import optimize_program  # noqa: E402

__all__ = ["optimize_program"]
