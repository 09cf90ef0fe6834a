"""Eight tasks of different shapes. Five are from the work that the toolkit is for: training runs, notes and tickets.

router   a choice: which project handles a request (the built-in project's own training and validation rows)
record   a typed record read out of a note; the share of right fields
minutes  a number; how close it is
cause    two steps, find the symptom and then name its cause; right or wrong
title    a short title in a house style; the words it shares with the expected one

Three are puzzles of reasoning-gym (`gym`), with its verifiers:

letters   a number: how often a letter is in a few words; right or wrong
largest   the largest or smallest of three numbers in several notations; right or wrong
relation  a choice of eight: what one member of a family is to another

Rows are drawn by a seed: the same rows on every machine, no network, no file. Each seed of the search draws new ones;
only the router's are the same ones, split anew. Those from templates stand in for real ones in shape and tone, and
say nothing about how well a model reads real notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.project import Project
    from dspy_toolkit.settings import Settings

Record = dict[str, Any]

GYM = ("letters", "largest", "relation")
"""What needs reasoning-gym."""
NAMES = ("router", "record", "minutes", "cause", "title", *GYM)


@dataclass(frozen=True)
class Task:
    """A project and where its rows come from."""

    project: Project
    records: Callable[[Settings], list[Record]]
    """Makes the rows; the settings are for a task whose rows lie in a project of the toolkit."""

    @property
    def name(self) -> str:
        """The project's."""
        return self.project.name


def find_task(name: str) -> Task:
    """The task called `name`. Raises KeyError."""
    if name not in NAMES:
        raise KeyError(f"There is no task {name!r}. Take one of {', '.join(NAMES)}.")
    module = import_module(f"{__name__}.{name}")  # DSPy is imported with it, not with the names
    return Task(module.project, module.records)
