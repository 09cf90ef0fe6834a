"""Choosing an optimizer, and compiling a program with it.

budget      what a compilation may spend
problem     what is to be optimized: a program, its rows, its metric, its models
profile     a look at the program before anything is spent
selection   which optimizer, with a written reason; experience orders them by what earlier runs gained
starting    searching from another program
compiling   the one door to the optimizers
bootstrap mipro gepa   each: a plan within a budget, and a search
search      what they share: metered models, the candidates' record, the best so far
watch       ends an optimizer of DSPy's when the model fails or the budget is spent; quiet keeps it off the terminal
reflection  the model that writes instructions
states      what of a program is kept, and what reaches the model
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.optimizers.budget import BUDGETS, Budget, find_budget
from dspy_toolkit.optimizers.plan import Choice
from dspy_toolkit.optimizers.problem import Problem

if TYPE_CHECKING:
    from dspy_toolkit.optimizers.compiling import Compiled, compile_program
    from dspy_toolkit.optimizers.profile import Profile, probe
    from dspy_toolkit.optimizers.selection import select

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
    "Compiled": "compiling",
    "compile_program": "compiling",
    "Profile": "profile",
    "probe": "profile",
    "select": "selection",
}


def __getattr__(name: str) -> Any:
    # These import DSPy, which takes more than a second; budgets, choices and problems do not need it.
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
