"""Advice from measured ground: facts → guard → surrogate → words → trial.

A project that can be measured says what a person knows before (`Situation`), what was run (`Cell`), and what is worth minimizing
(`Advisor`). The rest is shared: the surrogate over the measured runs, the range from held-out families, the program that reads
descriptions, its metric, trials. No step asks a language model for a number.

situation   typed fields with `unknown`
cells       measuring, a cell at a time, each in a process of its own (`child`)
landscape   the surrogate, ranks, ranges
references  what else could be done: default, random, best constant, nearest, ridge, Gaussian process
advisor     what a project says of itself
advice      giving advice
explaining  numbers in words, checked against facts
rules       reading by keywords
signature   a signature made of a situation
program     the program to optimize, and its metric
definition  the project of an advisor
champion    reading by the promoted program
trying      running what was advised
writing     numbers that every loader reads alike
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.advisor import Advisor, Configuration, Facts, context_from, load_advisor
from dspy_toolkit.advising.cells import Cell
from dspy_toolkit.advising.landscape import Columns
from dspy_toolkit.advising.situation import Situation

if TYPE_CHECKING:
    from dspy_toolkit.advising.advice import Advice, advise

__all__ = [
    "Advice",
    "Advisor",
    "Cell",
    "Columns",
    "Configuration",
    "Facts",
    "Situation",
    "advise",
    "context_from",
    "load_advisor",
]


def __getattr__(name: str) -> Any:
    if name in ("Advice", "advise"):
        from dspy_toolkit.advising import advice

        return getattr(advice, name)
    raise AttributeError(f"module 'dspy_toolkit.advising' has no attribute {name!r}")
