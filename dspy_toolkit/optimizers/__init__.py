"""Choosing an optimizer, and compiling a program with it.

budget      what a compilation may spend
problem     what is to be optimized: a program, its rows, its metric, its models; sampling draws from the rows
profile     what the probe showed of a program
choice      which optimizer, how, and why
states      a program as JSON, and the part of it that reaches the model
plan        the probe, and the choice of the generators
generators  every optimizer as a generator of candidates, a file each
pool        which candidate is made next, scored on more rows, and wins
compile     a search from its choice to its result
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.optimizers.budget import BUDGETS, Budget, find_budget
from dspy_toolkit.optimizers.choice import Choice
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.compile import Compiled, compile_program
    from dspy_toolkit.optimizers.plan.probe import probe
    from dspy_toolkit.optimizers.plan.selection import select

__all__ = [
    "BUDGETS",
    "Budget",
    "Choice",
    "Compiled",
    "Problem",
    "Profile",
    "compile_program",
    "find_budget",
    "probe",
    "select",
]

_WHERE = {
    "Compiled": "compile",
    "compile_program": "compile",
    "probe": "plan.probe",
    "select": "plan.selection",
}


def __getattr__(name: str) -> Any:
    # These import DSPy, which takes more than a second; budgets, choices and problems do not need it.
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
